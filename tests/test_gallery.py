"""docs/patterns.md is what `python bench/patterns.py` writes now, of every mask in the catalog."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

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


def test_every_mask_has_a_sample_and_a_section(bench):
    assert sorted(bench.SAMPLES) == sorted(MASKS)
    page = (ROOT / "docs" / "patterns.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.M) == MASKS


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
    again = bench.made(code.splitlines()[-1])
    assert again.expr is shown[name].mask.expr
    assert fs.parse(text) is again.expr


def test_sources_are_the_first_sentence(bench):
    found = {name: bench.source_of(fs.CATALOG[name]) for name in ("causal", "causal_window", "sink", "windows")}
    assert found == {
        "causal": "",
        "causal_window": "Mistral 7B",
        "sink": "StreamingLLM",
        "windows": "Swin, DaViT; HiDiffusion (wrap=True)",
    }
