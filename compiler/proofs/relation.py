"""What is known by blocks of a relation between tokens ("this query sees this key"): packed bits, and a product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from flexspec.expr import apply, param, substitute, var

from ..blocks.block_map import BlockMap
from ..blocks.leaves import CHUNK
from ..blocks.runs import BlockKind
from ..evaluation.points import Array
from ..simplify.rules import simplify

_AT_ONCE = 1 << 22
"""Words that a product holds at once."""


class Runs(NamedTuple):
    """The set bits of a boolean matrix: the rows that have any, the first run of each, every run's start and stop."""

    rows: Array
    first: Array
    start: Array
    stop: Array


@dataclass(frozen=True, eq=False)
class Relation:
    """A relation on tokens that holds each token with itself, by blocks: packed bits, uint64 [blocks, words].

    some: false only where no pair of the block is related. The others are true only where it is sure: `rows` that each
    row of the block has a related pair, `columns` that each column has one, `full` that all pairs are related; and
    `triangle`, bool [blocks], that all pairs of a diagonal block with `kv <= q` are.
    """

    some: Array
    rows: Array
    columns: Array
    full: Array
    triangle: Array

    @property
    def exact(self) -> bool:
        """Are all four the same, as with blocks of one token?"""
        return self.some is self.rows is self.columns is self.full

    @cached_property
    def runs(self) -> dict[int, Runs]:
        """The runs of each matrix, by its id; made once, as a layer is often a left factor."""
        matrices = {id(matrix): matrix for matrix in (self.some, self.rows, self.columns, self.full)}
        return {name: _runs(unpack(matrix)) for name, matrix in matrices.items()}

    def after(self, earlier: Relation) -> Relation:
        """The product: `q` sees `kv` through some token that it sees here and that sees `kv` in `earlier`.

        Sound, for a block (i, j) through a block m. No pair of (i, j) is related unless some m has a pair on both
        sides: `some`. If each row of (i, m) has a pair, and each row of (m, j), then each row of (i, j); so for
        columns. All of (i, j) are related if all of (i, m) are and each column of (m, j) has a pair: a key's own token
        in m is seen by every query. The same with rows: every query sees a token of m, which sees every key. Each
        token is related to itself on both sides, so that the product holds whatever a factor holds.
        """
        if self.exact and earlier.exact:
            some = self._through("some", earlier.some)
            return Relation(some, some, some, some, self.triangle)
        full = self._through("full", earlier.columns) | self._through("rows", earlier.full)
        rows = self._through("rows", earlier.rows) | full
        columns = self._through("columns", earlier.columns) | full
        some = self._through("some", earlier.some)
        return Relation(some, rows, columns, full, self.triangle | earlier.triangle | _diagonal(full))

    def _through(self, left: str, right: Array) -> Array:
        return _product(self.runs[id(getattr(self, left))], right)

    def possibly_all_before(self) -> bool:
        """May every query see everything up to its own position?"""
        return not (_before(len(self.some), 0) & ~self.some).any()

    def surely_all_before(self) -> bool:
        """Does every query surely see everything up to its own position?"""
        return bool(self.triangle.all()) and not (_before(len(self.some), -1) & ~self.full).any()

    def same(self, other: Relation) -> bool:
        """Is the same known of both?"""
        names = ("some",) if self.exact and other.exact else ("some", "rows", "columns", "full", "triangle")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)


def identity(sizes: Array) -> Relation:
    """Each token with itself; sizes: the tokens of each block, int64 [blocks]."""
    diagonal = np.eye(len(sizes), dtype=bool)
    some, alone = pack(diagonal), sizes == 1
    full = some if alone.all() else pack(diagonal & alone)
    return Relation(some, some, some, full, alone)


def relation(block_map: BlockMap) -> Relation:
    """The pairs that a map of one (batch, head) keeps, and each token with itself. Partial blocks are evaluated."""
    kinds = block_map.maps[0].dense(block_map.kv_blocks)
    some, full = kinds > BlockKind.EMPTY, kinds == BlockKind.FULL
    own = np.eye(len(kinds), dtype=bool)
    if block_map.block_q == 1:
        matrix = pack(some | own)
        return Relation(matrix, matrix, matrix, matrix, np.ones(len(kinds), bool))
    rows, columns = full | own, full | own
    sizes = np.minimum(block_map.block_q, block_map.q_len - block_map.block_q * np.arange(len(kinds)))
    triangle = full.diagonal() | (sizes == 1)
    q, kv = (np.concatenate(side) for side in zip(*_partial(block_map), strict=True))
    first, like = _distinct(block_map, q, kv)
    covered = _covered(block_map, q[first], kv[first])
    q_block, kv_block = q[:, 0] // block_map.block_q, kv[:, 0] // block_map.block_kv
    rows[q_block, kv_block] |= covered.rows[like]
    columns[q_block, kv_block] |= covered.columns[like]
    diagonal = q_block == kv_block
    triangle[q_block[diagonal]] |= covered.triangle[like][diagonal]
    return Relation(pack(some | own), pack(rows), pack(columns), pack(full), triangle)


def _partial(block_map: BlockMap) -> list[tuple[Array, Array]]:
    none = np.zeros((0, 2), np.int64)
    return [(none, none), *((q, kv) for kind, q, kv in block_map.blocks(0) if kind is BlockKind.PARTIAL)]


class _Distinct(NamedTuple):
    """Blocks that differ, by their place in a list, and for every block of the list which of these it is like."""

    first: Array
    like: Array


def _distinct(block_map: BlockMap, q: Array, kv: Array) -> _Distinct:
    """Blocks given by ranges [n, 2]: those as far from the diagonal are alike where the mask depends on `q - kv`."""
    # With `kv + distance` in place of `q`, a mask in which no `kv` is left is a function of the distance alone. Blocks
    # of one shape and one distance of their corners then hold the same distances at the same places.
    q_idx = apply("add", var("kv"), param("distance"))
    if "kv" in simplify(substitute(block_map.exprs[0], {"q": q_idx})).names:
        return _Distinct(np.arange(len(q)), np.arange(len(q)))
    kind = np.stack([q[:, 0] - kv[:, 0], q[:, 1] - q[:, 0], kv[:, 1] - kv[:, 0]], 1)
    _, first, like = np.unique(kind, axis=0, return_index=True, return_inverse=True)
    return _Distinct(first, like.reshape(-1))


class _Covered(NamedTuple):
    """Of blocks, bool [n] each: as the fields of a `Relation`; the triangle holds on the diagonal only."""

    rows: Array
    columns: Array
    triangle: Array


def _covered(block_map: BlockMap, q: Array, kv: Array) -> _Covered:
    """Of blocks given by ranges [n, 2]: does each row have a pair, each column, and are all with `kv < q` kept?

    A pair with `kv == q` is related in any case. What a ragged block lacks is asked for nothing.
    """
    side = block_map.block_q
    not_before = ~np.tri(side, k=-1, dtype=bool)
    covered = _Covered(*np.empty((3, len(q)), bool))
    step = max(1, CHUNK // (side * side))
    for start in range(0, len(q), step):
        chunk = slice(start, start + step)
        kept = block_map.pairs(0, q[chunk], kv[chunk])
        no_q, no_kv = (np.arange(side) >= ends[chunk, 1:] - ends[chunk, :1] for ends in (q, kv))
        covered.rows[chunk] = (kept.any(2) | no_q).all(1)
        covered.columns[chunk] = (kept.any(1) | no_kv).all(1)
        covered.triangle[chunk] = (kept | not_before | no_q[:, :, None]).all((1, 2))
    return covered


def pack(matrix: Array) -> Array:
    """bool [n, n] as uint64 [n, words]."""
    bits = np.packbits(matrix, axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)


def unpack(packed: Array) -> Array:
    """uint64 [n, words] as bool [n, n]."""
    return np.unpackbits(packed.view(np.uint8), axis=1, count=len(packed)).view(bool)


def _before(blocks: int, offset: int) -> Array:
    return pack(np.tri(blocks, k=offset, dtype=bool))


def _diagonal(packed: Array) -> Array:
    block = np.arange(len(packed))
    return (packed.view(np.uint8)[block, block // 8] >> (7 - block % 8) & 1).astype(bool)


def _runs(matrix: Array) -> Runs:
    width = matrix.shape[1] + 1
    flat = np.pad(matrix, ((0, 0), (1, 0))).reshape(-1)  # a false column keeps rows apart
    edges = np.flatnonzero(flat != np.append(flat[1:], False)) + 1
    start, stop = edges[::2], edges[1::2]
    row = start // width
    rows, first = np.unique(row, return_index=True)
    return Runs(rows, np.append(first, len(row)), start - row * width - 1, stop - row * width - 1)


def _product(left: Runs, right: Array) -> Array:
    """The boolean product: each row of `left` joins the rows of `right` at its set bits.

    Rows `i` to `i + 2**k` of `right` are joined beforehand, for each k, so that a run of any length costs two rows: of
    the largest power in it, from its start and up to its stop. Where the two overlap, joining twice changes nothing.
    """
    product = np.zeros_like(right)
    level = np.frexp(left.stop - left.start)[1] - 1
    joined = [right]
    for k in range(int(level.max(initial=0))):
        joined.append(joined[-1][: -(1 << k)] | joined[-1][1 << k :])
    most, done = max(1, _AT_ONCE // right.shape[1]), 0
    while done < len(left.rows):
        # At least one row, and as many more as fit.
        end = max(done + 1, int(np.searchsorted(left.first, left.first[done] + most, "right")) - 1)
        span = slice(left.first[done], left.first[end])
        start, stop, of_level = left.start[span], left.stop[span], level[span]
        by_run = np.empty((len(start), right.shape[1]), np.uint64)
        for k in np.unique(of_level):
            runs = np.flatnonzero(of_level == k)
            by_run[runs] = joined[k][start[runs]] | joined[k][stop[runs] - (1 << k)]
        product[left.rows[done:end]] = np.bitwise_or.reduceat(by_run, left.first[done:end] - span.start, axis=0)
        done = end
    return product
