# ruff: noqa: SIM300, C416 - the operands stand on purpose where they stand
"""Every kind of misuse: its code, the user's own line under the caret, and the fix."""

from __future__ import annotations

import functools
import linecache
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import flexspec as fs
from flexspec.errors import CODES, FlexSpecError, choices
from flexspec.text import parse_pattern

IDS = torch.tensor([0, 0, 1, 1])
GRID = torch.zeros(2, 4, dtype=torch.int64)
WIDE = torch.zeros(4, 257, dtype=torch.int64)
LIST = [0, 0, 1, 1]
ARRAY = np.array(LIST)
COMPLEX = torch.zeros(4, dtype=torch.complex64)
VIDEO = fs.Canvas(t=2, h=2)
IMAGE = fs.Canvas(h=4)
DOCUMENT = fs.Input("document_id", dims=("batch", "sequence"))
STATE = {"calls": 0}
BOTH = "fix: keep them apart: fs.Attention(mask=..., scores=[...])"


def caught(call: Callable[[], object]) -> FlexSpecError:
    with pytest.raises(FlexSpecError) as found:
        call()
    assert found.value.code in CODES
    return found.value


def four(fn: Callable[..., object]) -> Callable[[], object]:
    return lambda: fs.from_mask_mod(fn)


def branch(b, h, q, kv):
    if q > kv:
        return q > 3
    return kv > 3


def loop(b, h, q, kv):
    while q > kv:
        q = q - 1
    return q > 3


def asserting(b, h, q, kv):
    assert q >= 0
    return q > kv


def silent(q, kv):
    q > kv  # noqa: B015


def four_silent(n, b, h, q, kv):
    q > n  # noqa: B015


class Silent:
    def keep(self, q, kv):
        q > kv  # noqa: B015


def counting(q, kv):
    STATE["calls"] += 1
    return q - kv < STATE["calls"]


def noise_table(q, kv):
    return torch.from_numpy(np.random.default_rng().random(8))[q] > 0.5


def crash(q, kv):
    return {}["missing"] + q > kv


def in_place(q, kv):
    q += GRID
    return q > kv


# what is done, the code, part of the user's line that has the caret ("": no line), part of the fix
TRACE = [
    (four(lambda b, h, q, kv: q > kv and kv > 2), "FS002", "q > kv and kv > 2", "a & b"),
    (four(lambda b, h, q, kv: q > kv or kv > 2), "FS002", "q > kv or kv > 2", "a | b"),
    (four(lambda b, h, q, kv: not q > kv), "FS003", "not q > kv", "~(...)"),
    (four(branch), "FS004", "if q > kv:", "torch.where"),
    (four(loop), "FS004", "while q > kv:", "without a loop"),
    (four(asserting), "FS004", "assert q >= 0", "torch.where"),
    (four(lambda b, h, q, kv: q > 3 if q > kv else kv > 3), "FS004", "if q > kv else", "torch.where"),
    (four(lambda b, h, q, kv: 0 <= q < kv), "FS005", "0 <= q < kv", "(a < b) & (b < c)"),
    (four(lambda b, h, q, kv: min(q, kv) > 1), "FS006", "min(q, kv)", "torch.where"),
    (four(lambda b, h, q, kv: bool(q)), "FS006", "bool(q)", "torch.where"),
    (four(lambda b, h, q, kv: q in (1, 2)), "FS006", "q in (1, 2)", "torch.isin"),
    (four(lambda b, h, q, kv: LIST[q] == LIST[kv]), "FS006", "LIST[q]", "index torch tensors"),
    (four(lambda b, h, q, kv: ARRAY[q] == ARRAY[kv]), "FS006", "ARRAY[q]", "index torch tensors"),
    (four(lambda b, h, q, kv: int(q) > kv), "FS006", "int(q)", "index torch tensors"),
    (four(lambda b, h, q, kv: round(q) > kv), "FS006", "round(q)", ""),
    (four(lambda b, h, q, kv: [i for i in range(q)]), "FS006", "range(q)", "loop over numbers"),
    (four(lambda b, h, q, kv: {1: 2}[q] > kv), "FS006", "{1: 2}[q]", ""),
    (four(lambda b, h, q, kv: sum(q) > kv), "FS006", "sum(q)", ""),
    (four(lambda b, h, q, kv: torch.rand(()) > q), "FS009", "torch.rand(())", "into a tensor"),
    (
        four(lambda b, h, q, kv: torch.bernoulli(torch.ones(4))[q] > 0),
        "FS009",
        "torch.bernoulli",
        "into a tensor",
    ),
    (four(lambda b, h, q, kv: q > random.random()), "FS009", "", "into a tensor"),
    (lambda: fs.mask(counting), "FS009", "def counting(q, kv)", "into a tensor"),
    (lambda: fs.mask(noise_table), "FS009", "def noise_table(q, kv)", "into a tensor"),
    (four(lambda b, h, q, kv: torch.cumsum(q, 0) > kv), "FS008", "torch.cumsum(q, 0)", "compute it before"),
    (four(lambda b, h, q, kv: torch.matmul(q, kv) > 0), "FS008", "torch.matmul", "arithmetic"),
    (four(lambda b, h, q, kv: q.item() > kv), "FS008", "q.item()", "fs.Param"),
    (four(lambda b, h, q, kv: q.flurb() > kv), "FS008", "q.flurb()", "arithmetic"),
    (four(lambda b, h, q, kv: torch.stack([q, kv])[0] > 1), "FS008", "torch.stack", "index one tensor"),
    (four(lambda b, h, q, kv: IDS[q].sum() > kv), "FS008", "IDS[q].sum()", "before"),
    (four(lambda b, h, q, kv: torch.max(q, 0)[0] > kv), "FS008", "torch.max(q, 0)", ""),
    (four(lambda b, h, q, kv: torch.sub(q, kv, alpha=2) > 1), "FS008", "alpha=2", ""),
    (four(lambda b, h, q, kv: q.to(torch.int8) > kv), "FS008", "torch.int8", "64-bit"),
    (four(lambda b, h, q, kv: q.view(torch.float64) > kv), "FS008", "q.view", ""),
    (four(lambda b, h, q, kv: 3**q > kv), "FS008", "3**q", "1 << n"),
    (four(lambda b, h, q, kv: q**9 > kv), "FS008", "q**9", "1 << n"),
    (four(lambda b, h, q, kv: torch.isin(q, torch.arange(300))), "FS008", "torch.isin", "boolean table"),
    (four(lambda b, h, q, kv: torch.isin(kv, WIDE[q])), "FS008", "torch.isin(kv, WIDE[q])", "boolean table"),
    (four(lambda b, h, q, kv: (WIDE[q] == kv).any(-1)), "FS008", "WIDE[q] == kv", "boolean table"),
    (four(lambda b, h, q, kv: torch.isin(kv, DOCUMENT[b])), "FS008", "torch.isin", "capture the tensor"),
    (four(lambda b, h, q, kv: (DOCUMENT[b] == kv).any(-1)), "FS008", "DOCUMENT[b] == kv", "boolean table"),
    (four(lambda b, h, q, kv: torch.isin(kv, GRID)[q]), "FS010", "torch.isin(kv, GRID)[q]", ""),
    (four(lambda b, h, q, kv: torch.isin(kv, DOCUMENT)), "FS010", "torch.isin", "index every dim"),
    (four(lambda b, h, q, kv: torch.isin(q, kv)), "FS008", "torch.isin(q, kv)", ""),
    (four(lambda b, h, q, kv: (GRID[q] == kv).sum(-1) > 0), "FS010", "GRID[q] == kv", "torch.isin"),
    (four(lambda b, h, q, kv: (GRID[q] == kv).any(1)), "FS010", "GRID[q] == kv", "torch.isin"),
    (four(lambda b, h, q, kv: (GRID[q] == kv) & (WIDE[q] == kv)), "FS008", "WIDE[q] == kv", "boolean table"),
    (four(lambda b, h, q, kv: GRID[q] * 2 == kv), "FS010", "GRID[q] * 2", "torch.isin"),
    (four(lambda b, h, q, kv: (q > kv).any()), "FS008", "(q > kv).any()", "`|`"),
    (four(lambda b, h, q, kv: GRID[:, q] > kv), "FS008", "GRID[:, q]", "index every dim"),
    (four(lambda b, h, q, kv: GRID[b, None, q] > kv), "FS008", "GRID[b, None, q]", "index every dim"),
    (four(lambda b, h, q, kv: crash(q, kv)), "FS008", 'return {}["missing"]', ""),
    (four(lambda b, h, q, kv: q @ kv > 1), "FS008", "q @ kv", ""),
    (four(lambda b, h, q, kv: GRID[q] > kv), "FS010", "GRID[q] > kv", "index every dim"),
    (four(lambda b, h, q, kv: IDS[b, q] > kv), "FS010", "IDS[b, q]", "one index for each dim"),
    (four(lambda b, h, q, kv: IDS > q), "FS010", "IDS > q", "index it"),
    (four(lambda b, h, q, kv: IDS[q / 2] > kv), "FS010", "IDS[q / 2]", ".int()"),
    (four(lambda b, h, q, kv: q[0] > kv), "FS010", "q[0]", ""),
    (four(lambda b, h, q, kv: (q / 2) & 1 > kv), "FS010", "(q / 2) & 1", ""),
    (four(lambda b, h, q, kv: (q > kv) - (kv > 2)), "FS010", "(q > kv) - (kv > 2)", "a & ~b"),
    (four(lambda b, h, q, kv: q + "1" > kv), "FS010", 'q + "1"', "numbers"),
    (four(lambda b, h, q, kv: COMPLEX[q] == 1), "FS010", "COMPLEX[q]", "bool, integer or real"),
    (four(lambda b, h, q, kv: DOCUMENT == q), "FS010", "DOCUMENT == q", "index every dim"),
    (four(lambda b, h, q, kv: near & (q > 1)), "FS010", "near & (q > 1)", "mask & other"),
    (lambda: fs.mask(lambda q, kv: ARRAY - q > kv), "FS010", "ARRAY - q", ""),
    (lambda: fs.mask(in_place), "FS010", "q += GRID", "index it"),
    (lambda: fs.mask(lambda q, kv: q.t > kv.t), "FS011", "q.t > kv.t", "fs.Canvas"),
    (lambda: fs.mask(canvas=VIDEO)(lambda q, kv: q.w > kv.w), "FS011", "q.w", "axes"),
    (lambda: fs.mask(lambda q, kv: q - kv), "FS007", "q - kv", "comparison"),
    (lambda: fs.mask(silent), "FS007", "def silent(q, kv):", "return"),
    (lambda: fs.from_mask_mod(functools.partial(four_silent, 1)), "FS007", "def four_silent", "return"),
    (lambda: fs.mask(Silent().keep), "FS007", "def keep(self, q, kv)", "return"),
    (lambda: fs.score(lambda score, q: None), "FS007", "fs.score(lambda score, q: None)", "return"),
    (lambda: fs.mask(lambda q, kv: [q > kv]), "FS010", "", ""),
    (lambda: fs.score(lambda score, q: q > 1), "FS007", "fs.score(lambda score, q: q > 1)", "@fs.mask"),
    (lambda: fs.mask(lambda x, q: q > x), "FS001", "lambda x, q", "positions are named"),
    (lambda: fs.mask(lambda *q: q > 1), "FS001", "lambda *q", "positions are named"),
    (lambda: fs.mask(lambda q, q_idx: q > 1), "FS001", "lambda q, q_idx", "take one"),
    (lambda: fs.mask(3), "FS001", "fs.mask(3)", ""),
    (lambda: fs.score(3), "FS001", "fs.score(3)", ""),
    (lambda: fs.score(lambda q, kv: q - kv), "FS001", "lambda q, kv", ""),
    (lambda: fs.from_mask_mod(lambda q, kv: q > kv), "FS001", "lambda q, kv", "@fs.mask"),
    (lambda: fs.from_mask_mod(3), "FS001", "fs.from_mask_mod(3)", ""),
    (lambda: fs.from_score_mod(lambda b, h, q, kv: q), "FS001", "lambda b, h, q, kv", "@fs.mask"),
]


@pytest.mark.parametrize(("call", "code", "line", "fix"), TRACE, ids=range(len(TRACE)))
def test_a_predicate_that_cannot_be(call: Callable[[], object], code: str, line: str, fix: str) -> None:
    error = caught(call)
    assert (error.code, True) == (code, True), str(error)
    assert fix in (error.fix or ""), str(error)
    if line:
        assert error.where is not None, str(error)
        shown = error.where.split("\n")
        assert "test_errors.py" in shown[0] and line in shown[1], str(error)
        start = len(shown[2]) - len(shown[2].lstrip())
        marked = shown[1][start : len(shown[2])]
        assert set(shown[2].strip()) == {"^"} and marked.strip(), str(error)
        assert line in marked or marked in line or marked.strip() in shown[1], str(error)


near = fs.mask(lambda q, kv, *, window: q - kv < window)
documents = fs.mask(lambda b, q, kv: DOCUMENT[b, q] == DOCUMENT[b, kv])
indexed = fs.mask(lambda q, kv: IDS[q] == IDS[kv])
divided = fs.mask(lambda q, kv: q // kv > 1)
pixels = fs.mask(canvas=VIDEO)(lambda q, kv: q.t == kv.t)
table = fs.Input("table", dims=("rows", "rows"))
squares = fs.mask(lambda q, kv: table[q % 2, kv % 2] > 0)
two_defaults = (
    fs.mask(lambda q, kv, *, window=3: q - kv < window),
    fs.mask(lambda q, kv, *, window=4: q > window),
)
floats = fs.mask(lambda q, kv, *, window=3.0: q - kv < window)

# what is done, the code, parts of the whole text
VALUES = [
    (lambda: near.dense(4), "FS020", ["`window` has no value", "fix: give window=<int>", "near.dense(4)"]),
    (lambda: documents.dense(4), "FS020", ["document_id=<int tensor [batch, sequence]>"]),
    (lambda: near.dense(4, windw=3, window=3), "FS021", ["`windw`", "did you mean `window`?"]),
    (lambda: near.dense(4, window=3, other=3), "FS021", ["it takes window"]),
    (lambda: near(windw=3), "FS021", ["no parameter `windw`", "it takes window"]),
    (lambda: near(1, 2), "FS021", ["takes 1 parameters (window), got 2"]),
    (lambda: near(1, window=2), "FS021", ["given twice"]),
    (lambda: near.dense(4, window="3"), "FS023", ["`window` is '3'; it must be int"]),
    (lambda: near.dense(4, window=2.5), "FS023", ["it must be int"]),
    (lambda: near.dense(4, window=True), "FS023", ["it must be int"]),
    (lambda: near.dense(4, window=2**62), "FS034", ["64-bit"]),
    (lambda: (near & indexed)(window="3"), "FS023", ["it must be int"]),
    (lambda: documents.dense(4, document_id=[0, 0, 1, 1]), "FS023", ["is a list", "give a torch.Tensor"]),
    (lambda: documents(document_id=LIST), "FS023", ["is a list", "give a torch.Tensor"]),
    (lambda: documents.dense(4, document_id=GRID.float()), "FS023", ["torch.float32", "reads int"]),
    (lambda: documents.dense(4, document_id=IDS), "FS022", ["shape (4,)", "[batch, sequence]"]),
    (lambda: documents.dense(5, document_id=GRID), "FS022", ["dim `sequence`", "size 4", "5"]),
    (lambda: documents.dense(4, batch=3, document_id=GRID), "FS022", ["dim `batch`", "size 2"]),
    (lambda: documents.dense(4, document_id=GRID[:, :0]), "FS022", ["is empty"]),
    (lambda: squares.dense(4, table=GRID), "FS022", ["dim `rows`", "size 4", "2"]),
    (lambda: indexed.dense(5), "FS024", ["index 0 of `IDS` goes from 0 to 4, its size is 4", "clamp"]),
    (lambda: divided.dense(4), "FS035", ["divided by zero in `//`"]),
    (lambda: near.dense(0, window=1), "FS030", ["q_len is 0", "at least 1"]),
    (lambda: near.dense(4, 2.0, window=1), "FS030", ["kv_len is 2.0"]),
    (lambda: near.dense(4, batch=-1, window=1), "FS030", ["batch is -1"]),
    (lambda: pixels.dense(5), "FS032", ["canvas(t=2, h=2) has 4 tokens", "q_len 5"]),
    (
        lambda: pixels & fs.mask(canvas=IMAGE)(lambda q, kv: q.h == kv.h),
        "FS032",
        ["canvas(t=2, h=2)", "canvas(h=4)"],
    ),
    (lambda: fs.Canvas(), "FS032", ["at least one axis"]),
    (lambda: fs.Canvas(t=0), "FS032", ["axis `t` has length 0", "at least 1"]),
    (lambda: fs.Canvas(t=True), "FS032", ["has length True"]),
    (lambda: two_defaults[0] & two_defaults[1], "FS026", ["default 3", "and 4", "bind it on one side"]),
    (lambda: near & floats(window=fs.Param("window", float)), "FS026", ["`window` is both int and float"]),
    (
        lambda: documents & fs.mask(lambda q: fs.Input("document_id", dims=("_",))[q] > 0),
        "FS026",
        ["document_id"],
    ),
    (lambda: bool(near), "FS002", ["True or False", "bool(near)", "`&`, `|`, `~`"]),
    (lambda: near and indexed, "FS002", ["near and indexed"]),
    (lambda: not near, "FS002", ["not near"]),
    (lambda: near & 3, None, []),
    (lambda: fs.Param("q"), "FS021", ["`q` already has a meaning"]),
    (lambda: fs.Param("a b"), "FS021", ["no name"]),
    (lambda: fs.Param("w", "text"), "FS023", ["`text` is no type", "bool, int, float or double"]),
    (lambda: fs.Input("x", dims="batch"), "FS022", ['("batch", "sequence")']),
    (lambda: fs.Input("min", dims=()), "FS021", ["already has a meaning"]),
    (lambda: fs.tiled(VIDEO, t=0), "FS033", ["side on `t` is 0"]),
    (lambda: fs.tiled(VIDEO, w=2), "FS011", ["names w; the canvas has the axes t, h", "there is no w"]),
    (lambda: fs.neighborhood(VIDEO, window={"t": 3}), "FS011", ["give window for h too"]),
    (lambda: fs.neighborhood(VIDEO, window={"t": 3, "x": 3}), "FS011", ["there is no x; give window for h too"]),
    (lambda: fs.neighborhood(VIDEO, window=(3, 3)), "FS011", ["window is (3, 3)", "dict(t=..., h=...)"]),
    (lambda: fs.neighborhood(VIDEO, window=3, stride=4), "FS025", ["give at most the window"]),
    (lambda: fs.neighborhood(VIDEO, window=3).dense(5), "FS032", ["the call has q_len 5", "see fs.with_text"]),
    (lambda: fs.axes(VIDEO, "t"), "FS033", ["name each axis once", 'axes(canvas, "h", "t")']),
    (lambda: fs.axes(VIDEO, ["t", "h"]), "FS033", ["name each axis once"]),
    (lambda: fs.axes("t"), "FS033", ["needs a canvas, got str"]),
    (lambda: fs.striped(0), "FS033", ["ranks is 0"]),
    (lambda: fs.tiled(VIDEO, t=2, h=2).permutation(5), "FS033", ["4 tokens; the length is 5"]),
    (lambda: fs.striped(3).undo(torch.zeros(5, 2), length=5), "FS033", ["take 6 places", "has 5"]),
    (
        lambda: fs.tiled(VIDEO, {"t": 4, "h": 4}, {"t": 3, "h": 4}),
        "FS033",
        ["on `t` is 3, the outer one's 4", "divides"],
    ),
    (lambda: fs.zigzag(0), "FS033", ["ranks is 0"]),
    (lambda: fs.dilated(VIDEO, 2.0), "FS033", ["dilation on `t` is 2.0"]),
    (lambda: fs.hilbert(3), "FS033", ["needs a canvas, got int"]),
    (lambda: fs.hilbert(fs.Canvas(a=2, b=2, c=2, d=2**17)), "FS033", ["2**63", "use morton"]),
    (lambda: fs.by_label([0, 1]), "FS023", ["labels are list", "integer tensor"]),
    (lambda: fs.by_label(torch.zeros(3)), "FS023", ["labels are torch.float32"]),
    (lambda: fs.by_label(torch.zeros(1, 1, 2, 3).int()), "FS022", ["[1, 1, 2, 3]", "[batch, tokens]"]),
    (lambda: fs.by_label(torch.zeros(5).int()).permutation(6), "FS033", ["5 tokens; the length is 6"]),
    (lambda: fs.concatenated(3, fs.zigzag(2)), "FS033", ["zigzag(2) is of any number"]),
    (lambda: fs.Attention(mask=fs.score(lambda score: score)), "FS023", ["scores=[...]"]),
    (lambda: fs.Attention(scores=[near]), "FS023", ["mask=..."]),
    (lambda: fs.causal() & fs.alibi(), "FS010", ["`alibi()` is a score mod, and a mask is needed", BOTH]),
    (lambda: fs.alibi() | fs.causal(), "FS010", ["`alibi()` is a score mod, and a mask is needed", BOTH]),
    (lambda: fs.causal() - fs.alibi(), "FS010", ["`alibi()` is a score mod, and a mask is needed", BOTH]),
    (lambda: fs.causal() & fs.sink_logit(), "FS010", ["is a weight, and a mask", "fs.Attention(mask=..., weight=...)"]),
    (lambda: fs.relu_weight() ^ fs.causal(), "FS010", ["`relu_weight()` is a weight, and a mask is needed"]),
    (lambda: fs.alibi() + fs.causal(), "FS010", ["`causal()` is a mask, and a score mod is needed here", BOTH]),
    (lambda: fs.causal() + fs.alibi(), "FS010", ["`causal()` is a mask, and a score mod is needed here", BOTH]),
    (lambda: fs.alibi() + fs.relu_weight(), "FS010", ["`relu_weight()` is a weight", "scores=[...], weight=..."]),
    (lambda: fs.relu_weight() + fs.alibi(), "FS010", ["`relu_weight()` is a weight, and a score mod is needed"]),
    (lambda: fs.segments({"a": 2}, {("a", "a"): fs.alibi()}), "FS023", ["`alibi()` is a score mod, and a mask", BOTH]),
    (lambda: fs.per_head([fs.causal(), fs.alibi()]), "FS023", ["`alibi()` is a score mod, and a mask", BOTH]),
    (lambda: fs.with_text(fs.alibi(), 3), "FS023", ["`alibi()` is a score mod, and a mask", BOTH]),
    (lambda: fs.reordered(fs.sink_logit(), fs.striped(2), 4), "FS023", ["is a weight, and a mask"]),
    (lambda: fs.from_mask_mod(fs.alibi()), "FS023", ["`alibi()` is a score mod, and a mask", BOTH]),
    (lambda: fs.from_mask_mod(fs.relu_weight()), "FS023", ["`relu_weight()` is a weight, and a mask"]),
    (lambda: fs.from_score_mod(fs.causal()), "FS023", ["`causal()` is a mask, and a score mod", BOTH]),
    (lambda: fs.from_score_mod(fs.relu_weight()), "FS023", ["`relu_weight()` is a weight, and a score mod"]),
    (lambda: fs.mask(fs.alibi()), "FS023", ["`alibi()` is a score mod, and a mask", BOTH]),
    (lambda: fs.score(fs.causal()), "FS023", ["`causal()` is a mask, and a score mod", BOTH]),
    (lambda: fs.Attention(mask=fs.relu_weight()), "FS023", ["`relu_weight()` is a weight, and a mask"]),
    (lambda: fs.Attention(scores=[fs.relu_weight()]), "FS023", ["`relu_weight()` is a weight, and a score mod"]),
    (lambda: fs.compile(fs.relu_weight()), "FS023", ["`relu_weight()` is a weight, and a mask"]),
    (lambda: fs.neighborhood(VIDEO, 3, causal="x"), "FS011", ["no axis 'x'", 'it has t or h: causal="t"']),
    (lambda: fs.neighborhood(VIDEO, 3, causal=""), "FS023", ["causal is ''", 'give names: causal="t h"']),
    (lambda: fs.neighborhood(VIDEO, 3, causal=(True, False)), "FS011", ["no axis True"]),
    (lambda: fs.neighborhood(VIDEO, 3, causal=3), "FS025", ["causal on `t` is 3", 'causal="t"']),
    (
        lambda: fs.block_map(fs.causal, 4, 6, order=fs.morton(VIDEO)),
        "FS033",
        ["morton orders 4 tokens, both q and kv; q_len is 4 and kv_len 6", "order=(q_order, kv_order)"],
    ),
    (lambda: fs.block_map(fs.causal, 6, order=fs.morton(VIDEO)), "FS033", ["the length is 6", "give an order of 6"]),
    (lambda: fs.tiled(VIDEO, t=2, h=2).undo(torch.zeros(5, 2)), "FS033", ["take 4 places", "give x of 4 places"]),
    (lambda: fs.Input("table", (0, "heads")), "FS022", ["dims of table are (0, 'heads')"]),
    (lambda: fs.Input("table", (True,)), "FS022", ["dims of table are"]),
    (lambda: fs.Attention(scale="1"), "FS023", ["it must be a number"]),
    (lambda: fs.Attention(scale=float("nan")), "FS023", ["it must be a number"]),
    (lambda: fs.plan(fs.causal, 64, orders=fs.striped(2)), "FS033", ["orders is striped(2)", "orders=["]),
    (lambda: fs.plan(fs.causal, 64, more_orders=fs.striped(2)), "FS033", ["more_orders=["]),
    (lambda: fs.plan(fs.causal, 64, orders="striped(2)"), "FS033", ["give a list"]),
    (lambda: fs.plan(fs.causal, 64, block_sizes=16), "FS030", ["block_sizes is 16", "give a list"]),
    (lambda: fs.plan(fs.causal, 64, block_sizes=[]), "FS030", ["block_sizes is []"]),
    (lambda: fs.fit(torch.ones(8, 8), orders=fs.striped(2)), "FS033", ["give a list"]),
    (lambda: fs.fit(torch.ones(8, 8), orders=["striped"]), "FS033", ["order is 'striped'"]),
    (lambda: fs.show_orders(fs.causal, fs.striped(2), length=64), "FS033", ["give a list"]),
    (lambda: fs.show_orders(fs.causal, ["striped"], length=64), "FS033", ["order is 'striped'"]),
    (lambda: fs.mask(lambda q: q + 2**63 > 1), "FS034", ["does not fit 64 bits"]),
    (lambda: parse_pattern("casual"), "FS051", ["did you mean `causal`?"]),
]


@pytest.mark.parametrize(("call", "code", "parts"), VALUES, ids=range(len(VALUES)))
def test_a_value_that_does_not_fit(call: Callable[[], object], code: str | None, parts: list[str]) -> None:
    if code is None:
        with pytest.raises(TypeError):
            call()
        return
    error = caught(call)
    assert error.code == code, str(error)
    for part in parts:
        assert part in str(error)
    assert "flexspec" + "/" not in str(error)


def test_errors_point_at_the_users_line() -> None:
    error = caught(lambda: near.dense(4))
    assert error.where is not None
    assert error.where.split("\n")[1].strip() == "error = caught(lambda: near.dense(4))"
    assert error.where.split("\n")[2].strip() == "^" * len("near.dense(4)")


def test_the_caret_counts_characters_not_bytes() -> None:
    error = caught(lambda: ("ßßß", near.dense(4)))
    line, marks = (error.where or "").split("\n")[1:]
    assert line[marks.index("^") : len(marks)] == "near.dense(4)"


def three_mistakes(q, kv):
    first = q > 1 and kv > 1
    second = not kv > 2
    return (q > 3 or kv > 3) | first | second


def test_several_mistakes_are_reported_together() -> None:
    text = str(caught(lambda: fs.mask(three_mistakes)))
    assert text.startswith("3 mistakes")
    assert [code for code in re.findall(r"\[(FS\d+)\]", text)] == ["FS002", "FS003", "FS002"]
    for line in ("first = q > 1 and kv > 1", "second = not kv > 2", "return (q > 3 or kv > 3)"):
        assert line in text


def test_several_missing_values_are_reported_together() -> None:
    text = str(caught(lambda: (near & documents).dense(4, other=1)))
    assert text.startswith("3 mistakes")
    assert text.count("FS020") == 2 and text.count("FS021") == 1


def test_every_wrong_parameter_is_reported() -> None:
    text = str(caught(lambda: fs.mask(lambda x, y, *q: q)))
    assert all(f"`{name}`" in text for name in ("x", "y", "*q"))


def test_describe_has_code_line_and_fix() -> None:
    error = FlexSpecError("FS001", "wrong", fix="right", where="    line\n    ^")
    assert str(error) == "[FS001] wrong\n    line\n    ^\nfix: right"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(("names", "text"), [([], "(none)"), (["a"], "a"), (["a", "b", "c"], "a, b or c")])
def test_choices(names: list[str], text: str) -> None:
    assert choices(names) == text


def test_the_page_of_codes_has_each_code_once() -> None:
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (FS\d+): (.*)$", page, re.M)
    assert dict(headings) == CODES
    assert [code for code, _ in headings] == list(CODES)
    for section in re.split(r"^### ", page, flags=re.M)[1:]:
        assert "```" in section, section[:40]


def examples() -> list[tuple[str, str, str]]:
    """Code, example and message of each section of the page that has both."""
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
    form = r"^### (FS\d+).*?(?:^```python\n(.*?)^```\n\n)^```text\n(.*?)^```"
    sections = re.split(r"^(?=### )", page, flags=re.M)[1:]
    return [found.groups() for text in sections if (found := re.match(form, text, re.M | re.S))]


@pytest.mark.parametrize(("code", "example", "message"), examples(), ids=lambda part: part[:5])
def test_the_pages_examples_say_what_the_page_says(code: str, example: str, message: str) -> None:
    linecache.cache["example.py"] = (len(example), None, example.splitlines(keepends=True), "example.py")
    names = {"fs": fs, "torch": torch, "__name__": "example"}
    error = caught(lambda: exec(compile(example, "example.py", "exec"), names))
    assert error.code == code
    if code.startswith("FS04"):  # what a machine can run differs
        return
    assert "\n".join(line[:100].rstrip() for line in str(error).split("\n")) == message.rstrip("\n")
