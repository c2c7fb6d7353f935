"""Specs in files: what is saved is loaded, and what is broken is refused with its place."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import flexspec as fs
from flexspec.errors import FlexSpecError
from flexspec.spec import MAX_ELEMENTS, save

IDS = torch.tensor([[0, 0, 1], [0, 1, 1]], dtype=torch.int32)
GRID = fs.Canvas(h=2, w=3)


def near(q, kv, *, window=4, slope=0.5, strict=True):
    return (q - kv).abs() * slope < window


MASKS = {
    "plain": fs.mask(lambda q, kv: (q >= kv) & ~(q - kv < 3)),
    "parameters": fs.mask(near),
    "bound": fs.mask(near)(window=2),
    "open": fs.mask(lambda q, kv, *, window: q - kv < window),
    "input": fs.mask(lambda b, q, kv: (x := fs.Input("ids", dims=("batch", "sequence")))[b, q] == x[b, kv]),
    "canvas": fs.mask(canvas=GRID)(lambda q, kv: (q.h == kv.h) | (q.w - kv.w == 1)),
    "constant": fs.Mask.constant(True),
    "composed": fs.mask(near)(window=2) & ~fs.mask(lambda q, kv: q == kv),
    "real numbers": fs.mask(lambda q, kv: (q * 0.1 < 1e-7) | (kv < math.inf) | (q > -1e30)),
}


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_comes_back_equal(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask.{suffix}"
    MASKS[name].save(path)
    loaded = fs.load(str(path))
    assert loaded == MASKS[name]
    assert isinstance(loaded, fs.Mask)
    assert loaded.expr is MASKS[name].expr
    assert (loaded.label, loaded.canvas) == (MASKS[name].label, MASKS[name].canvas)
    assert loaded.defaults == MASKS[name].defaults
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_held_tensors_come_back_with_their_values(dtype: str, suffix: str, tmp_path: Path) -> None:
    table = (torch.arange(6).reshape(2, 3) % 2).to(getattr(torch, dtype))
    if "float" in dtype:
        table = table / 3
        table[0, 0], table[0, 1], table[0, 2] = math.inf, -math.inf, math.nan
    scalar = torch.tensor(2)
    made = fs.from_mask_mod(lambda b, h, q, kv: (table[q, kv] == 1) & (q < scalar))
    made.save(tmp_path / f"m.{suffix}")
    loaded = fs.load(tmp_path / f"m.{suffix}")
    assert loaded.expr is made.expr
    assert loaded.tensors["table"].dtype is table.dtype
    assert torch.equal(loaded.tensors["table"].nan_to_num(), table.nan_to_num())
    assert torch.equal(loaded.tensors["table"].isnan(), table.isnan())
    assert loaded.tensors["scalar"].shape == ()
    assert torch.equal(loaded.dense(2, 3), made.dense(2, 3))


def test_a_bound_input_comes_back_with_its_dims(tmp_path: Path) -> None:
    made = MASKS["input"](ids=IDS)
    made.save(tmp_path / "m.yaml")
    assert torch.equal(fs.load(tmp_path / "m.yaml").dense(3), made.dense(3))


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_scores_and_attentions_come_back(suffix: str, tmp_path: Path) -> None:
    soft = fs.score(lambda score, *, cap=30.0: cap * (score / cap).tanh())
    bias = fs.score(lambda score, q, kv: score - abs(q - kv))
    whole = fs.Attention(mask=MASKS["parameters"], scores=[soft, bias], scale=0.25)
    for made in (soft, bias, whole, fs.Attention(), fs.Attention(scale=2)):
        made.save(tmp_path / f"a.{suffix}")
        assert fs.load(tmp_path / f"a.{suffix}") == made


def test_the_document_reads_well(tmp_path: Path) -> None:
    fs.mask(near).save(tmp_path / "m.yaml")
    assert yaml.safe_load((tmp_path / "m.yaml").read_text()) == {
        "version": 1,
        "kind": "mask",
        "expr": "slope: float; window: int; abs(q - kv) * slope < window",
        "label": "near()",
        "parameters": {"window": 4, "slope": 0.5, "strict": True},
    }


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    MASKS["plain"].save(path)
    before = path.read_text()
    table = torch.zeros(MAX_ELEMENTS + 1, dtype=torch.int64)
    large = fs.mask(lambda q: table[q] > 0)
    with pytest.raises(FlexSpecError, match=r"FS053.*65,537 elements(.|\n)*fs.Input\(\"table\"") as caught:
        large.save(path)
    assert caught.value.code == "FS053"
    assert path.read_text() == before
    assert len(list(tmp_path.iterdir())) == 1
    table = table[1:]
    fs.mask(lambda q: table[q] > 0).save(path)
    assert fs.load(path).tensors["table"].shape == (MAX_ELEMENTS,)


GOOD: dict[str, Any] = {
    "version": 1,
    "kind": "mask",
    "expr": "w: int; ids: int[batch, sequence]; (ids[b, q] == ids[b, kv]) & (q - kv < w)",
    "label": "documents",
    "parameters": {"w": 3},
    "tensors": {"ids": {"dtype": "int32", "shape": [1, 2], "values": [0, 1]}},
}
WHOLE = {
    "version": 1,
    "kind": "attention",
    "mask": {"expr": "q >= kv", "label": "causal"},
    "scores": [],
    "scale": 1.0,
}


def changed(document: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    found = document = copy.deepcopy(document)
    *path, last = place.split(".")
    for key in path:
        found = found[int(key)] if isinstance(found, list) else found[key]
    if value is ...:
        del found[last]
    elif isinstance(found, list):
        found.insert(int(last), value)
    else:
        found[last] = value
    return document


# place, value (...: left out), the message's start, part of the message
BROKEN = [
    ("version", 2, "version: ", "1"),
    ("version", "1", "version: ", "integer"),
    ("version", True, "version: ", "integer"),
    ("version", ..., "version: ", "required"),
    ("kind", "masks", "kind: ", "'mask' or 'score'"),
    ("kind", ..., "kind: ", "required"),
    ("kind", "score", "expr: ", "this is bool, not a score"),
    ("extra", 1, "extra: ", "not permitted"),
    ("expr", ..., "expr: ", "required"),
    ("expr", 3, "expr: ", "valid string"),
    ("expr", "q >=", "expr: ", "FS050"),
    ("expr", "q - kv", "expr: ", "this is int, not a mask"),
    ("expr", "q / kv", "expr: ", "this is float, not a mask"),
    (
        "expr",
        "ids: int[batch, sequence]; (ids[b, q] > 0) & (score > 1)",
        "expr: ",
        "cannot depend on the score",
    ),
    ("expr", "__import__('os').system('true')", "expr: ", "FS050"),
    (
        "expr",
        "ids: int[sequence]; ids[q] > 0",
        "tensors.ids.shape: ",
        "[1, 2] does not fit the dims [sequence]",
    ),
    ("expr", "ids: bool[batch, sequence]; ids[b, q]", "tensors.ids: ", "reads bool"),
    ("expr", "q > kv", "tensors.ids: ", "reads no such tensor"),
    ("expr", "ids: int[batch, sequence]; (ids[b, q] > 0) & (q.t > 1)", "canvas: ", "q.t"),
    ("expr", "ids: int[batch, sequence]; w: int[sequence]; ids[b, w[q]] > 0", "parameters.w: ", "tensor"),
    ("label", 3, "label: ", "valid string"),
    ("canvas", {"h": 0}, "canvas.h: ", "greater than or equal to 1"),
    ("canvas", {"h": 1.5}, "canvas.h: ", "integer"),
    ("canvas", {"h w": 2}, "canvas.h w", "pattern"),
    ("canvas", [2, 3], "canvas: ", "dictionary"),
    ("parameters", [3], "parameters: ", "dictionary"),
    ("parameters.w", "3", "parameters.w.", "valid"),
    ("parameters.w", None, "parameters.w.", "valid"),
    ("tensors.ids.dtype", "complex64", "tensors.ids.dtype: ", "'bool'"),
    ("tensors.ids.dtype", "float32", "tensors.ids: ", "reads int"),
    ("tensors.ids.dtype", "bool", "tensors.ids: ", "0 is no bool"),
    ("tensors.ids.dtype", ..., "tensors.ids.dtype: ", "required"),
    ("tensors.ids.shape", [3], "tensors.ids.shape: ", "does not hold 2 values"),
    ("tensors.ids.shape", [2], "tensors.ids.shape: ", "does not fit the dims [batch, sequence]"),
    ("tensors.ids.shape", [-1, -2], "tensors.ids.shape.0: ", "greater than or equal to 1"),
    ("tensors.ids.shape", [1.0, 2], "tensors.ids.shape.0: ", "integer"),
    ("tensors.ids.shape", [2**70, 1], "tensors.ids.shape: ", "does not hold"),
    ("tensors.ids.shape", [1] * 17, "tensors.ids.shape: ", "at most 16"),
    ("tensors.ids.values", [0, 1.5], "tensors.ids: ", "1.5 is no int32"),
    ("tensors.ids.values", [0, True], "tensors.ids: ", "True is no int32"),
    ("tensors.ids.values", [0, "1"], "tensors.ids.values.1.", "valid"),
    ("tensors.ids.values", [0, None], "tensors.ids.values.1.", "valid"),
    ("tensors.ids.values", [0, 2**40], "tensors.ids: ", "does not fit int32"),
    ("tensors.ids.values", [0, "inf"], "tensors.ids: ", "inf is no int32"),
    ("tensors.ids.values", [[0, 1]], "tensors.ids.values.0.", "valid"),
    ("tensors.ids.extra", 1, "tensors.ids.extra: ", "not permitted"),
]
BROKEN_WHOLE = [
    ("scale", "1", "scale.", "valid"),
    ("scale", math.nan, "scale: ", "must be a number"),
    ("mask", ..., "mask: ", "required"),
    ("mask.kind", "mask", "mask.kind: ", "not permitted"),
    ("mask.expr", "q", "mask.expr: ", "this is int, not a mask"),
    ("scores.0", {"expr": "q > kv", "label": "no"}, "scores.0.expr: ", "this is bool, not a score"),
    ("scores.0", {"expr": "score +", "label": "no"}, "scores.0.expr: ", "FS050"),
    ("expr", "q > kv", "expr: ", "not permitted"),
]
ALL_BROKEN = [(GOOD, *item) for item in BROKEN] + [(WHOLE, *item) for item in BROKEN_WHOLE]


@pytest.mark.parametrize("suffix", ["yaml", "json"])
@pytest.mark.parametrize(("good", "place", "value", "start", "part"), ALL_BROKEN, ids=range(len(ALL_BROKEN)))
def test_a_broken_document(
    good: dict[str, Any], place: str, value: Any, start: str, part: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"m.{suffix}"
    document = changed(good, place, value)
    path.write_text(json.dumps(document) if suffix == "json" else yaml.safe_dump(document))
    with pytest.raises(FlexSpecError) as caught:
        fs.load(path)
    assert caught.value.code == "FS052", str(caught.value)
    assert caught.value.message.startswith(start), caught.value.message
    assert part in caught.value.message, caught.value.message


def test_the_good_documents_are_good(tmp_path: Path) -> None:
    for document in (GOOD, WHOLE):
        (tmp_path / "m.json").write_text(json.dumps(document))
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(document))
        assert fs.load(tmp_path / "m.json").label == fs.load(tmp_path / "m.yaml").label


DEEP = "[" * 30 + "]" * 30
LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
# file name, text, code, part of the message
FILES = [
    ("m.yaml", LAUGHS, "FS052", "anchors and aliases"),
    ("m.yaml", "expr: *missing", "FS052", "alias"),
    ("m.yaml", "&a expr: q", "FS052", "anchors"),
    ("m.yaml", "!!python/object/apply:os.system ['true']", "FS052", "python/object"),
    ("m.yaml", "a: !!python/name:os.system ''", "FS052", "python/name"),
    ("m.yaml", "a: b: c", "FS052", "the document"),
    ("m.yaml", "version: 1\nversion: 1\n", "FS052", "given twice"),
    ("m.yaml", "", "FS052", "the document"),
    ("m.yaml", "- 1", "FS052", "the document"),
    ("m.yaml", "a: 1\n---\nb: 2", "FS052", "the document"),
    ("m.yaml", "a: " + "9" * 5000, "FS052", ""),
    ("m.yaml", DEEP, "FS053", "deeper than 20"),
    ("m.yaml", "[" * 100_000, "FS053", "deeper than 20"),
    ("m.json", DEEP, "FS053", "deeper than 20"),
    ("m.json", "[" * 100_000, "FS053", "deeper than 20"),
    ("m.json", '{"expr": "' + "[" * 100 + '\\"[["}', "FS052", "required"),
    ("m.json", '{"version": 1, "version": 1}', "FS052", "given twice"),
    ("m.json", "{", "FS052", "the document"),
    ("m.json", "", "FS052", "the document"),
    ("m.json", "[]", "FS052", "the document"),
    ("m.json", "null", "FS052", "the document"),
    ("m.json", "9" * 5000, "FS052", ""),
    ("m.json", json.dumps(GOOD | {"expr": "(" * 1000}), "FS053", "nests deeper"),
    ("m.json", json.dumps(GOOD | {"expr": "x" * 300_000}), "FS053", "300,000 characters"),
    ("m.json", b"\xff\xfe", "FS054", "cannot be read"),
    ("m.yaml", b"\xff\xfe\x00", "FS054", "cannot be read"),
    ("m.json", b" " * (16 * 2**20 + 1), "FS053", "larger than 16,777,216 bytes"),
    ("m.txt", "", "FS054", "end it in .yaml, .yml or .json"),
    ("m", "", "FS054", ".yaml, .yml or .json"),
]


@pytest.mark.parametrize(("name", "text", "code", "part"), FILES, ids=range(len(FILES)))
def test_a_hostile_file(name: str, text: str | bytes, code: str, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(FlexSpecError) as caught:
        fs.load(tmp_path / name)
    assert caught.value.code == code, str(caught.value)
    assert part in str(caught.value)


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    for call in (
        lambda: fs.load(tmp_path / "missing.yaml"),
        lambda: fs.load(tmp_path / "folder.json"),
        lambda: MASKS["plain"].save(tmp_path / "none" / "m.yaml"),
        lambda: MASKS["plain"].save(tmp_path / "folder.json"),
        lambda: MASKS["plain"].save(tmp_path / "m.toml"),
    ):
        with pytest.raises(FlexSpecError) as caught:
            call()
        assert caught.value.code == "FS054"
        assert "test_spec.py" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.json"]
    with pytest.raises(FlexSpecError, match="FS023"):
        save(3, tmp_path / "m.json")
