"""docs/patterns.md is what `python bench/patterns.py` writes now, of every mask in the catalog."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import flexspec as fs

ROOT = Path(__file__).parent.parent
MASKS = [entry.name for entry in fs.CATALOG.values() if entry.kind == "mask"]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_patterns", ROOT / "bench" / "patterns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(bench):
    return bench.gallery()


def test_every_entry_of_the_catalog_is_on_the_page():
    page = (ROOT / "docs" / "patterns.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.M) == MASKS
    others = [entry.name for entry in fs.CATALOG.values() if entry.kind != "mask"]
    listed = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert [name for name in listed if name in others] == others


def entry(example, picture="", name="causal"):
    return replace(fs.CATALOG[name], example=example, picture=picture)


def test_a_pattern_without_a_picture_is_drawn_with_its_example(bench):
    shown = bench.Shown(entry("causal_window(1024)"))
    assert shown.code == "fs.causal_window(1024)" and shown.pictures == ["causal.png"]
    shown = bench.Shown(entry("axial(canvas(h=16, w=32), 'h')"))
    assert shown.mask.expr is fs.axial(fs.Canvas(h=16, w=32), "h").expr
    assert shown.pictures == ["causal.png", "causal_query.png"]


@pytest.mark.parametrize("example", ["", "document()", "axial(canvas(t=30, h=48, w=80), 't')"])
def test_one_that_cannot_be_drawn_has_a_section_without_a_picture(bench, example, tmp_path):
    shown = bench.Shown(entry(example))
    shown.draw(tmp_path)
    assert not list(tmp_path.iterdir()) and "<img" not in shown.section()
    assert shown.section().startswith("### causal\n\nKeys up to the query") and "Keeps" not in shown.section()


def test_a_wrong_picture_is_an_error(bench):
    with pytest.raises(fs.FlexSpecError):
        bench.Shown(entry("causal()", picture="fs.document([0, 1])"))


def test_the_page_is_up_to_date(bench, shown):
    assert (ROOT / "docs" / "patterns.md").read_text() == bench.page(shown), "run python bench/patterns.py"


@pytest.mark.parametrize("name", MASKS)
def test_pictures_are_there_and_small(name, shown):
    one = shown[name]
    assert len(one.pictures) == (2 if one.mask.canvas else 1)
    for picture in one.pictures:
        assert 0 < (ROOT / "docs" / "pictures" / picture).stat().st_size < 60_000


@pytest.mark.parametrize("name", MASKS)
def test_a_section_shows_code_and_formula_that_are_read_back(name, bench, shown):
    code, text = re.findall(r"```\w+\n(.*?)\n```", shown[name].section(), re.S)
    again = bench.value_of(code.splitlines()[-1])
    assert again.expr is shown[name].mask.expr
    assert fs.parse(text) is again.expr


def test_sources_are_the_first_sentence(bench):
    sources = {name: bench.said(fs.CATALOG[name], "Source") for name in ("causal", "causal_window", "sink", "windows")}
    assert sources == {
        "causal": "",
        "causal_window": "Mistral 7B",
        "sink": "StreamingLLM",
        "windows": "Swin, DaViT; HiDiffusion (wrap=True)",
    }


def test_every_weight_says_its_lse(bench):
    weights = [entry for entry in fs.CATALOG.values() if entry.kind == "weight"]
    assert {entry.name: bench.said(entry, "lse", ".;") for entry in weights} == {
        "sigmoid_weight": "none",
        "relu_weight": "none",
        "squared_relu_weight": "none",
        "taylor_weight": "log of the sum of the weights",
        "signed_weight": "log of the sum of `exp(abs(s))`",
        "sink_logit": "with the extra column",
        "identity_mix": "the softmax's",
    }


def test_the_values_at_run_time_are_given_as_the_page_says(bench):
    types = torch.arange(40)[None] % 7 % 3
    names = {"fs": fs, "table": torch.randn(2, 257), "types": types}
    names |= {name: torch.randn(1, 2, 40, 16) for name in "qkv"}
    exec(re.search(r"```python\n(.*?)```", bench.AT_RUN_TIME, re.S)[1], names)
    q, kv = torch.arange(40)[:, None], torch.arange(40)
    bias = names["table"][:, (q - kv).clamp(-128, 128) + 128]
    bias = bias.masked_fill(~fs.token_types(types, window=64).dense(40), -torch.inf)
    wanted = torch.nn.functional.scaled_dot_product_attention(names["q"], names["k"], names["v"], attn_mask=bias)
    torch.testing.assert_close(names["out"], wanted, atol=2e-5, rtol=2e-5)
