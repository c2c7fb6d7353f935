"""Fit patterns to an observed attention map: for each head, the mask that keeps most of its weight at a budget."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch

from flexspec.canvas import Canvas
from flexspec.errors import FlexSpecError, choices
from flexspec.inputs import make_sizes
from flexspec.mask import Mask
from flexspec.order import Order
from flexspec.user_line import user_caret

from ..blocks.grid import BlockSize, check_orders, make_grid
from ..planning.plans import in_columns
from . import families
from .families import Family
from .observed import Observed, Survey, read, survey
from .search import Problem, Trial, masses, sized


@dataclass(frozen=True, eq=False)
class Fit:
    """One mask for one head, measured.

    mass: the share of the head's weight that it keeps, each query with weight counting the same; 1 for a head without
    weight. density: what the budget counts, the share of blocks or of pairs. order: where tokens lie in memory for it,
    None for as they are.
    """

    head: int
    family: str
    mask: Mask
    order: Order | None
    mass: float
    density: float
    problem: Problem = field(repr=False)

    @cached_property
    def block_density(self) -> float:
        """Blocks that a kernel computes, over those of dense attention without padding."""
        return self._density("blocks")

    @cached_property
    def pair_density(self) -> float:
        """Pairs that are kept, over all pairs."""
        return self._density("pairs")

    @property
    def label(self) -> str:
        """The mask for a line of a table: shortened, its canvas left out."""
        return _short(self.mask.label)

    def _density(self, by: str) -> float:
        same = by == self.problem.by
        return self.density if same else self.problem.density(self.mask, self.order, by)[self.head]


def _short(label: str) -> str:
    text = re.sub(r"canvas=canvas\([^)]*\), |'", "", label)
    return text if len(text) <= 72 else text[:70] + " …"


@dataclass(frozen=True, eq=False)
class Fits:
    """The best `Fit` of each head, in a row: `len`, indexing and iteration are by head. Made by `fs.fit`.

    trials: everything that was measured within the budget, by head, best first. picture: float64 [heads, ...], the
    observed map, coarse, summed. `print` shows a table.
    """

    best: tuple[Fit, ...]
    trials: tuple[tuple[Fit, ...], ...] = field(repr=False)
    picture: torch.Tensor = field(repr=False)
    problem: Problem

    def __len__(self) -> int:
        return len(self.best)

    def __getitem__(self, head: int) -> Fit:
        return self.best[head]

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.best)

    @property
    def masks(self) -> list[Mask]:
        """The mask of each head, as `fs.per_head` takes them."""
        return [fit.mask for fit in self]

    @property
    def orders(self) -> list[Order | None]:
        """The order of each head. Heads with the same one can run in one call."""
        return [fit.order for fit in self]

    def alternatives(self, head: int) -> list[Fit]:
        """The best of each other family, best first."""
        best: dict[str, Fit] = {}
        for fit in self.trials[head]:
            best.setdefault(fit.family, fit)
        best.pop(self[head].family, None)
        return list(best.values())

    def curve(self, head: int) -> dict[str, list[tuple[float, float]]]:
        """For each family, (density, mass) of what was measured, by density; families with most mass first."""
        curves: dict[str, list[tuple[float, float]]] = {}
        for fit in self.trials[head]:
            curves.setdefault(fit.family, []).append((fit.density, fit.mass))
        return {family: sorted(points) for family, points in curves.items()}

    def cheapest(self, mass: float) -> Fits:
        """The same with, for each head, the least density that keeps at least `mass`; the best where none does."""
        chosen = []
        for fit, trials in zip(self.best, self.trials, strict=True):
            enough = [trial for trial in trials if trial.mass >= mass]
            chosen.append(min(enough, key=lambda trial: trial.density, default=fit))
        return Fits(tuple(chosen), self.trials, self.picture, self.problem)

    def __repr__(self) -> str:
        rows = [("head", "mass", "blocks", "pairs", "order", "pattern", "next best")]
        for fit in self:
            other = next(iter(self.alternatives(fit.head)), None)
            after = f"{_short(other.family)} {other.mass:.1%}" if other else "none"
            figures = (f"{fit.mass:.1%}", f"{fit.block_density:.1%}", f"{fit.pair_density:.1%}")
            rows.append((str(fit.head), *figures, str(fit.order or "as is"), fit.label, after))
        return in_columns(rows, left=range(4, 7))

    def show(self, path: str | Path) -> Path:
        """Draw each head's map, its fitted pattern and mass against density, to a file; its path. FS054."""
        from ..draw import fit as drawing

        return drawing.save(self, path)


def fit(
    attention: torch.Tensor,
    candidates: Sequence[Any] | None = None,
    budget: float = 0.25,
    *,
    by: str = "blocks",
    canvas: Canvas | None = None,
    orders: Sequence[Order | None] | None = None,
    block_size: BlockSize = 128,
    softmax: bool = False,
    pooled: bool = False,
    q_len: int | None = None,
    kv_len: int | None = None,
) -> Fits:
    """The mask of each head that keeps most of its observed attention at a budget.

    attention: weights of at least 0, or booleans: [q, kv], [heads, q, kv] or [batch, heads, q, kv] in logical (on a
        canvas row-major) order. Each row is divided by its sum; rows without weight do not count; batches are averaged.
    candidates: a list of masks, masks with one open integer parameter (`fs.causal_window`), functions of one integer,
        `fs.Family`s, or pairs (one of these, order). A larger integer has to keep more; the largest within the budget
        is searched, and its half, quarter and eighth are measured too. Default: windows, sinks, global tokens, chunks,
        dilations (under `striped` too), strides and the heaviest blocks of keys, all causal where no weight lies on a
        later key; with a canvas also neighborhoods, tiles, slabs, lines and bands under all orders of its axes and a
        tile order.
    budget: the largest density, in (0, 1], of all `q_len * kv_len` pairs (causal attention has about 0.5).
    by: what the budget counts. "blocks", blocks of `block_size` that are not empty under the order, padding included,
        which is what a kernel computes; or "pairs", which are kept.
    canvas: of the tokens, for masks on its axes.
    orders: tried for each candidate; the one with which it can be largest is taken, as an order changes no mass.
    block_size: tokens, one number or (query, key).
    softmax: True where `attention` is logits, -inf where masked.
    pooled: True where an entry is the weight of a block of `block_size` tokens. It counts as kept where its block is
        not empty, and orders are not searched, as a pooled map cannot be reordered.
    q_len, kv_len: tokens, where the last blocks of a pooled map are ragged.

    The mass is exact but for rounding in float64. Equal masses go to the lower density.

    Raises FS020 (a candidate lacks a value), FS021 (one has several open parameters), FS022 (the map's shape), FS023
    (its type, or what is no candidate), FS025 (what is no weight, a budget, nothing within it, orders of a pooled map),
    FS030 (lengths, a block size), FS032 (a canvas), FS033 (an order), FS024, FS034, FS035 (an index, an integer or a
    division in a candidate), and what `from_mask_mod` raises for a function.

    Source: the searches of MoA, Sparse VideoGen, RainFusion and PAROAttention.

    >>> import flexspec as fs
    >>> local = fs.causal_window(24).dense(256)[0, 0]
    >>> fits = fs.fit(local, [fs.causal_window, fs.sink(n=64), fs.chunked], block_size=16)
    >>> fits[0].mask, round(fits[0].mass, 9), fits[0].density
    (causal_window(window=24), 1.0, 0.17578125)
    """
    _check(budget, by, canvas, orders)
    size = _block_size(block_size)
    lengths = (canvas.size, canvas.size) if canvas is not None and pooled else (q_len, kv_len)
    observed = read(attention, size if pooled else (1, 1), lengths, softmax)
    _check_lengths(canvas, observed)
    problem = Problem(observed.q_len, observed.kv_len, observed.heads, size, budget, by)
    seen = survey(observed)
    tried = _families(observed, seen, candidates, canvas, orders, size[1])
    return _ranked(_trials(tried, problem, pooled), observed, seen, problem)


def _block_size(block_size: BlockSize) -> tuple[int, int]:
    """Tokens of a block: query, key. FS030."""
    grid = make_grid(make_sizes(1, 1, None, None), block_size, None)
    return grid.block_q, grid.block_kv


def _check_lengths(canvas: Canvas | None, observed: Observed) -> None:
    if canvas is not None and (canvas.size, canvas.size) != (observed.q_len, observed.kv_len):
        message = f"{canvas} has {canvas.size:,} tokens; the map is {observed.q_len:,} x {observed.kv_len:,}"
        raise FlexSpecError("FS032", message, where=user_caret())


def _families(
    observed: Observed,
    seen: Survey,
    candidates: Sequence[Any] | None,
    canvas: Canvas | None,
    orders: Sequence[Order | None] | None,
    block: int,
) -> list[Family]:
    """What is tried: the candidates, or the usual ones where none are given. FS021, FS023."""
    if candidates is None:
        return families.usual(observed, seen, canvas, orders, block)
    return families.given(candidates, orders or (None,), max(observed.q_len, observed.kv_len))


def _trials(tried: list[Family], problem: Problem, pooled: bool) -> list[Trial]:
    if pooled and any(family.orders != (None,) for family in tried):
        raise FlexSpecError("FS025", "a pooled map cannot be reordered", fix="leave orders out", where=user_caret())
    return [trial for family in tried for trial in sized(family, problem)] or _nothing_fits(tried, problem)


def _nothing_fits(tried: list[Family], problem: Problem) -> NoReturn:
    """The error where no candidate has a mask within the budget, with the least density there is."""
    least, name = min(
        (max(problem.density(family.make(family.sizes[0]), order)), family.name)
        for family in tried
        for order in family.orders
    )
    message = f"no candidate is within a budget of {problem.budget:.3g} of the {problem.by}"
    fix = f"the smallest, {name}, has density {least:.3g}: raise the budget, or take smaller blocks"
    raise FlexSpecError("FS025", message, fix=fix, where=user_caret())


def _ranked(trials: list[Trial], observed: Observed, seen: Survey, problem: Problem) -> Fits:
    """All trials by head, most mass first, then least density, then as they were named."""
    by_head: list[list[Fit]] = [[] for _ in range(problem.heads)]
    rows = seen.rows.tolist()
    for trial, mass in zip(trials, masses(trials, observed, problem), strict=True):
        for head, fits in enumerate(by_head):
            if trial.family.head in (None, head):
                share = min(1.0, max(0.0, float(mass[head]) / rows[head])) if rows[head] else 1.0
                density = trial.density[head]
                fits.append(Fit(head, trial.family.name, trial.mask, trial.order, share, density, problem))
    for fits in by_head:
        fits.sort(key=lambda fit: (-round(fit.mass, 9), fit.density))
    trials_by_head = tuple(tuple(fits) for fits in by_head)
    return Fits(tuple(fits[0] for fits in trials_by_head), trials_by_head, seen.picture, problem)


def _check(budget: Any, by: str, canvas: Any, orders: Any) -> None:
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget <= 1:
        message = f"budget is {budget!r}"
        raise FlexSpecError("FS025", message, fix="give a density above 0 and at most 1", where=user_caret())
    if by not in ("blocks", "pairs"):
        fix = f"give {choices(('blocks', 'pairs'))}"
        raise FlexSpecError("FS025", f"by is {by!r}", fix=fix, where=user_caret())
    if canvas is not None and not isinstance(canvas, Canvas):
        message = f"canvas is {canvas!r}"
        raise FlexSpecError("FS032", message, fix="give fs.Canvas(h=48, w=80)", where=user_caret())
    check_orders(() if orders is None else orders)
