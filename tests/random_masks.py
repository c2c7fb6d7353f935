"""Random predicates, written twice: as flexspec text and as Python, so that plain Python is the judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

import flexspec as fs
from flexspec.mask import Mask
from flexspec.syntax import parse


@dataclass
class Written:
    """One expression in both languages."""

    ours: str
    python: str


def _pair(form: str, *parts: Written, python: str | None = None) -> Written:
    return Written(form.format(*(p.ours for p in parts)), (python or form).format(*(p.python for p in parts)))


DECLARED = "sorted_ids: int[_]; ids: int[_]; flags: bool[_]; per_head: int[_]; grid: bool[_, _]; two: int[_, _]; "


def tables(length: int, batch: int, heads: int, seed: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {
        "sorted_ids": torch.randint(0, 5, (length,), generator=made).sort().values,
        "ids": torch.randint(-2, 4, (length,), generator=made),
        "flags": torch.rand(length, generator=made) < 0.1,
        "per_head": torch.randint(0, 9, (heads,), generator=made),
        "grid": torch.rand(4, 4, generator=made) < 0.5,
        "two": torch.randint(0, 3, (batch, length), generator=made).sort(-1).values,
    }


positions = st.sampled_from([Written(name, name) for name in ("q", "kv", "q", "kv", "h", "b")])
numbers = st.integers(-9, 40).map(lambda n: Written(str(n), f"({n})"))
loads = st.sampled_from(
    [
        Written(text, text)
        for text in ("sorted_ids[q]", "sorted_ids[kv]", "ids[q]", "ids[kv]", "per_head[h]", "two[b, q]", "two[b, kv]")
    ]
    + [Written("sorted_ids[min(abs(q - kv), 3)]", "sorted_ids[min(abs(q - kv), 3)]")]
)


def _grow(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    two = st.tuples(inner, inner)
    divisor = st.integers(1, 12).map(lambda n: Written(str(n), str(n)))
    negative = st.integers(-5, -1).map(lambda n: Written(str(n), f"({n})"))
    return st.one_of(
        st.tuples(st.sampled_from(["({} + {})", "({} - {})"]), two).map(lambda x: _pair(x[0], *x[1])),
        st.tuples(st.sampled_from(["min({}, {})", "max({}, {})"]), two).map(lambda x: _pair(x[0], *x[1])),
        st.tuples(st.sampled_from(["({} // {})", "({} % {})"]), inner, divisor | negative).map(
            lambda x: _pair(x[0], x[1], x[2])
        ),
        st.tuples(inner, st.integers(-3, 3)).map(lambda x: _pair(f"({{}} * ({x[1]}))", x[0])),
        st.tuples(st.sampled_from(["({} & {})", "({} | {})", "({} ^ {})"]), two).map(lambda x: _pair(x[0], *x[1])),
        inner.map(lambda x: _pair("abs({})", x)),
        inner.map(lambda x: _pair("-({})", x)),
        st.tuples(inner, st.integers(0, 3)).map(lambda x: _pair(f"({{}} >> {x[1]})", x[0])),
    )


integers = st.recursive(positions | numbers | loads, _grow, max_leaves=5)
comparisons = st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), integers, integers).map(
    lambda x: _pair(f"({{}} {x[0]} {{}})", x[1], x[2])
)
banded = st.sampled_from(["q >= kv", "abs(q - kv) < 20", "(q - kv) % 3 == 0", "q // 16 == kv // 16", "kv < 5"]).map(
    lambda text: Written(f"({text})", f"({text})")
)
flags = st.sampled_from(["flags[q]", "flags[kv]", "grid[q % 4, kv % 4]", "grid[q // 40 % 4, kv // 40 % 4]"]).map(
    lambda text: Written(text, f"bool({text})")
)


def _logic(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    two = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(st.sampled_from(["({} & {})", "({} | {})", "({} ^ {})"]), two).map(lambda x: _pair(x[0], *x[1])),
        inner.map(lambda x: _pair("(~{})", x, python="(not {})")),
        st.tuples(inner, inner, inner).map(lambda x: _pair("where({}, {}, {})", *x, python="({1} if {0} else {2})")),
    )


masks = st.recursive(comparisons | banded | flags, _logic, max_leaves=5)


def make_mask(written: Written, held: dict[str, torch.Tensor]) -> Mask:
    """The flexspec mask of a written predicate."""
    expr = parse(DECLARED + written.ours)
    return Mask(expr, written.ours, {name: tensor for name, tensor in held.items() if name in expr.names})


def truth(written: Written, held: dict[str, torch.Tensor], shape: tuple[int, int, int, int]) -> torch.Tensor:
    """The predicate on every (b, h, q, kv) by plain Python."""
    values = {name: _Table(tensor.tolist()) for name, tensor in held.items()}
    code = compile(written.python, "predicate", "eval")
    batch, heads, q_len, kv_len = shape
    kept = [
        bool(eval(code, {}, {**values, "b": b, "h": h, "q": q, "kv": kv, "abs": abs, "min": min, "max": max}))
        for b in range(batch)
        for h in range(heads)
        for q in range(q_len)
        for kv in range(kv_len)
    ]
    return torch.tensor(kept).view(shape)


class _Table:
    """Nested lists indexed as tensors are."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __getitem__(self, index: object) -> object:
        value: object = self.rows
        for part in index if isinstance(index, tuple) else (index,):
            value = value[part]  # type: ignore[index]
        return value


def block_kinds(kept: torch.Tensor, block_q: int, block_kv: int) -> torch.Tensor:
    """EMPTY 0, PARTIAL 1, FULL 2 of every block of a dense mask, by looking at each."""
    batch, heads, q_len, kv_len = kept.shape
    rows, columns = -(-q_len // block_q), -(-kv_len // block_kv)
    kinds = torch.zeros(batch, heads, rows, columns, dtype=torch.uint8)
    for i in range(rows):
        for j in range(columns):
            block = kept[:, :, i * block_q : (i + 1) * block_q, j * block_kv : (j + 1) * block_kv].flatten(2)
            kinds[:, :, i, j] = block.any(-1).to(torch.uint8) + block.all(-1).to(torch.uint8)
    return kinds


__all__ = ["block_kinds", "fs", "make_mask", "masks", "tables", "truth"]
