"""The tables of chosen blocks that one mask reads, made of the q and k of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, reduce
from itertools import product
from typing import Any

import torch
from torch import Tensor

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError
from flexspec.expr import Apply, Expr, Load, apply, const, inputs_of, params_of, transform, walk
from flexspec.inputs import Sizes
from flexspec.mask import Mask, exchanged
from flexspec.order import Order, Table
from flexspec.positions import GIVEN
from flexspec.selection import Selection
from flexspec.user_line import user_caret

from ..blocks.block_map import BlockMap
from ..blocks.runs import BlockKind
from ..map_cache import MapCache
from .choose import Around, choose, fitted
from .scores import Side

KEPT_KINDS = 1 << 24
"""Most kinds of blocks of a map that are kept as a table; of larger ones it is made at each call."""


class Choices:
    """Makes what the selections of a mask read, at each call.

    Block maps of the rest of the mask, which say what may be chosen, are kept from call to call.
    beside: the names of what is read beside the mask.
    """

    def __init__(self, mask: Mask, order: Order | None = None, beside: frozenset[str] = frozenset()) -> None:
        self.mask, self.order, self._beside = mask, order, beside
        self.selections = {name: each for name, each in mask.selections.items() if name in mask.expr.names}
        self._caches: dict[Any, MapCache] = {}

    def __bool__(self) -> bool:
        return bool(self.selections)

    @cached_property
    def rest(self) -> Mask:
        """The mask where choices are open: a pair that it keeps for some choice."""
        expr, names = self.mask.expr, [*self.selections]
        every = [dict.fromkeys(names, True)]
        if not only_adds(expr, names):
            every = [dict(zip(names, each, strict=True)) for each in product((True, False), repeat=len(names))]
        kept = reduce(lambda a, b: apply("or", a, b), [opened(expr, each) for each in every])
        return replace(self.mask, expr=kept, selections={}, predicate=None)

    @cached_property
    def turned(self) -> Mapping[str, set[bool]]:
        """Is each table read with queries and keys exchanged, as by `.T`? It may be read in both ways."""
        found: dict[str, set[bool]] = {name: set() for name in self.selections}
        for node in walk(self.mask.expr):
            if isinstance(node, Load) and node.input.name in found:
                found[node.input.name].add(is_turned(node))
        return found

    def values(
        self,
        q: Tensor | None,
        k: Tensor | None,
        sizes: Sizes,
        values: Mapping[str, Any],
        kv_heads: int | None = None,
    ) -> dict[str, Any]:
        """The values of a call, with the tables in the place of what the selections alone read.

        q, k: [batch, heads, tokens in memory, head_dim], None where they are not known. kv_heads: of the call, where k
            has more.
        """
        made: dict[str, Tensor] = {}
        given = {each.given: values.get(each.given) for each in self.selections.values() if each.given is not None}
        for name, selection in self.selections.items():
            table = given[selection.given] if selection.given is not None else None
            if name in self.mask.tensors or selection.given is not None and table is None:
                continue  # binding says what is missing
            if selection.rule is not None and table is not None:
                check_scores(str(selection.given), table)
            if selection.rule is None and selection.function is None:
                made[name] = as_table(name, table, _blocks(sizes, self.order, selection.block))
            elif q is not None and k is not None:
                made[name] = self._made(name, q, k, sizes, values, table, kv_heads)
            elif table is not None:  # scores of the call: of q and k nothing but their sizes is asked
                made[name] = self._made(name, *self._blank(table, sizes), sizes, values, table, kv_heads)
        return self.beside(values) | made

    def _blank(self, table: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Zeros as q and k, which take no memory."""
        heads = sizes.heads or (table.shape[1] if table.dim() > 1 else 1)
        lengths = _blocks(sizes, self.order, (1, 1))
        blank = table.new_zeros(1, dtype=torch.float32)
        q, k = (blank.expand(sizes.batch or table.shape[0], heads, n, 1) for n in lengths)
        return q, k

    def beside(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values without those that the selections alone read."""
        alone = {name for each in self.selections.values() for name in each.reads} - self._read_by_all
        return {name: value for name, value in values.items() if name not in alone}

    @cached_property
    def _read_by_all(self) -> frozenset[str]:
        """The names that are read by more than selections."""
        return self.rest.expr.names | self.mask.parameters.keys() | self._beside

    def there(self, side: str, x: Tensor, sizes: Sizes, values: Mapping[str, Any]) -> Tensor:
        """The places in memory that hold a token: bool [batch | 1, heads | 1, places]."""
        order, length = self.order and self.order.side(side), sizes.q_len if side == "q" else sizes.kv_len
        found = torch.ones((1, 1, length), dtype=torch.bool, device=x.device)
        positions = values.get(GIVEN[side])
        if positions is not None:
            group = x.shape[1] // (positions.shape[1] if positions.dim() == 3 else 1)
            held = positions >= 0
            found = held.unsqueeze(1) if held.dim() == 2 else held.repeat_interleave(max(group, 1), 1)
        if order is not None:
            found = order.apply(found.expand(*x.shape[:2], length).unsqueeze(-1)).squeeze(-1)
        return found

    def _made(
        self,
        name: str,
        q: Tensor,
        k: Tensor,
        sizes: Sizes,
        values: Mapping[str, Any],
        given: Tensor | None,
        kv_heads: int | None,
    ) -> Tensor:
        selection, kv_heads = self.selections[name], kv_heads or k.shape[1]
        positions = values.get(GIVEN["kv"])
        if positions is not None and positions.dim() == 3 and positions.shape[1] > k.shape[1]:
            k = k.repeat_interleave(positions.shape[1] // k.shape[1], 1)
        work = torch.float64 if q.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            rows, columns = (
                Side(x.detach().to(work), self.there(side, x, sizes, values), block)
                for side, x, block in zip(("q", "kv"), (q, k), selection.block, strict=True)
            )
            around = Around(self.open(name, selection.block, sizes, values, q.device))
            if selection.forced is not None:
                forced = self.kinds(selection.forced, selection.block, sizes, values, q.device)
                around = replace(around, forced=forced)
            if selection.stride is not None:
                square = (selection.stride, selection.stride)
                around = replace(around, groups=self.open(name, square, sizes, values, q.device))
            if selection.function is not None:
                given = _asked(selection, q.detach(), k.detach())
                if given.dtype == torch.bool:
                    table = fitted(given, (*q.shape[:2], *around.rest.shape[2:]), kv_heads)
                    return table if around.forced is None else table | (around.forced != BlockKind.EMPTY)
            return choose(selection, rows, columns, around, kv_heads, given)

    def open(
        self, name: str, block: tuple[int, int], sizes: Sizes, values: Mapping[str, Any], device: torch.device
    ) -> Tensor:
        """`kinds` of the rest of the mask by the entries of a selection's table. FS024 where it is read turned, and the
        sides differ.
        """
        straight = {False: self.kinds(self.rest, block, sizes, values, device)}
        if self.turned[name] == {False}:
            return straight[False]
        turned = self.kinds(self.rest, block[::-1], sizes, values, device).mT
        if turned.shape[2:] != straight[False].shape[2:]:
            lengths = f"q_len {sizes.q_len:,} and kv_len {sizes.kv_len:,}"
            message = f"`{self.mask.label}` reads a choice with queries and keys exchanged; the call has {lengths}"
            raise FlexSpecError("FS024", message, fix="give as many queries as keys", where=user_caret())
        found = straight | {True: turned}
        return reduce(torch.maximum, [found[way] for way in self.turned[name]])

    def kinds(
        self, mask: Mask, block: tuple[int, int], sizes: Sizes, values: Mapping[str, Any], device: torch.device
    ) -> Tensor:
        """uint8 of BlockKind [batch | 1, heads | 1, q_blocks, kv_blocks] of a mask, in memory."""
        key = mask, block  # a mask is known by the tensors that it holds, too
        if key not in self._caches:
            self._caches[key] = MapCache(Attention(mask), self.order, block)
        names = inputs_of(mask.expr).keys() | params_of(mask.expr).keys() | mask.defaults.keys() | {*GIVEN.values()}
        read = {name: value for name, value in values.items() if name in names}
        _, lowered = self._caches[key].of(sizes, read, device)
        assert isinstance(lowered.block_map, BlockMap)
        block_map = lowered.block_map
        few = block_map.index.size * block_map.q_blocks * block_map.kv_blocks <= KEPT_KINDS
        return block_map.derive(kinds_table, device) if few else kinds_table(block_map, device)


def resolved(
    mask: Mask,
    order: Order | None,
    sizes: Sizes,
    values: Mapping[str, Any],
    beside: frozenset[str] = frozenset(),
) -> tuple[Sizes, dict[str, Any]]:
    """Sizes and values of a mask with the tables that it reads, where `q` and `k` are among the values.

    q, k: [batch, heads, length, head_dim], in logical order. beside: names that are read beside the mask.
    """
    choices, others = Choices(mask, order, beside), dict(values)
    if not choices:
        return sizes, others
    q, k = (_checked(name, others.pop(name, None)) for name in ("q", "k"))
    if q is None or k is None:
        return sizes, choices.values(q, k, sizes, others)
    _check_together(q, k, sizes)
    sizes, kv_heads = replace(sizes, batch=sizes.batch or q.shape[0], heads=sizes.heads or q.shape[1]), k.shape[1]
    of_keys = order and order.side("kv")
    if isinstance(of_keys, Table) and not of_keys.shared(kv_heads, k.device):
        k = k.repeat_interleave(q.shape[1] // kv_heads, 1)
    q, k = (own.apply(x) if order and (own := order.side(side)) else x for side, x in (("q", q), ("kv", k)))
    return sizes, choices.values(q, k, sizes, others, kv_heads)


def _checked(name: str, x: Any) -> Tensor | None:
    if x is not None and not (isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 4):
        seen = f"{x.dtype} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        fix = "give floats [batch, heads, length, head_dim]"
        raise FlexSpecError("FS023", f"{name} is {seen}", fix=fix, where=user_caret())
    return x


def _check_together(q: Tensor, k: Tensor, sizes: Sizes) -> None:
    """FS022 where q and k are not of one call with these lengths."""
    (batch, heads, *of_q), (keys, kv_heads, *of_k) = q.shape, k.shape
    fits = batch == keys and kv_heads and heads % kv_heads == 0 and of_q[1] == of_k[1] and q.dtype == k.dtype
    if not fits or (of_q[0], of_k[0]) != (sizes.q_len, sizes.kv_len):
        message = f"q is {list(q.shape)} in {q.dtype} and k {list(k.shape)} in {k.dtype}"
        fix = f"give [batch, heads, {sizes.q_len}, head_dim] and [batch, kv_heads, {sizes.kv_len}, head_dim] of a call"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())


def kinds_table(block_map: BlockMap, device: torch.device) -> Tensor:
    """uint8 [batch | 1, heads | 1, q_blocks, kv_blocks] of BlockKind."""
    kinds = torch.stack([torch.from_numpy(runs.dense(block_map.kv_blocks)) for runs in block_map.maps])
    return kinds[torch.from_numpy(block_map.index)].to(device)


def opened(expr: Expr, choices: Mapping[str, bool | Expr]) -> Expr:
    """An expression with all blocks of its selections chosen, or none, or those of an expression, by their names."""

    def visit(node: Expr) -> Expr:
        if not isinstance(node, Load) or node.input.name not in choices:
            return node
        choice = choices[node.input.name]
        if isinstance(choice, Expr):
            return exchanged(choice) if is_turned(node) else choice
        return const(choice)

    return transform(expr, visit)


def is_turned(load: Load) -> bool:
    """Does a load from a table of blocks take its row from the key?"""
    return not {"kv", "kv.memory"}.isdisjoint(load.index[2].names)


def only_adds(expr: Expr, tables: Any) -> bool:
    """Does another chosen block never take a pair away? Choices stand under `&` and `|` alone."""
    if isinstance(expr, Load) and expr.input.name in tables or not expr.names & set(tables):
        return True
    return isinstance(expr, Apply) and expr.op in ("and", "or") and all(only_adds(x, tables) for x in expr.args)


def check_scores(name: str, table: Any) -> None:
    """FS023 where the scores of a call are no floats."""
    if not isinstance(table, Tensor) or not table.is_floating_point() or table.dim() not in (3, 4):
        seen = f"{table.dtype} {list(table.shape)}" if isinstance(table, Tensor) else type(table).__name__
        fix = "give floats [batch | 1, heads | 1, q_blocks, kv_blocks]"
        raise FlexSpecError("FS023", f"`{name}` is {seen}", fix=fix, where=user_caret())


def as_table(name: str, given: Any, blocks: tuple[int, int]) -> Tensor:
    """A table or lists of blocks as bool [batch | 1, heads | 1, q_blocks, kv_blocks]. FS022, FS023, FS024."""
    if not isinstance(given, Tensor) or given.dtype not in (torch.bool, torch.int32, torch.int64):
        seen = f"of dtype {given.dtype}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        fix = "give a bool table, or int32 or int64 lists of blocks"
        raise FlexSpecError("FS023", f"`{name}` is {seen}", fix=fix, where=user_caret())
    shape = tuple(given.shape)
    wide = given.dim() == 4 and (shape[3] == blocks[1] if given.dtype == torch.bool else 0 < shape[3] <= blocks[1])
    if not wide or shape[2] != blocks[0]:
        message = f"`{name}` has shape {list(shape)}; the call has {blocks[0]:,} x {blocks[1]:,} blocks"
        fix = "give [batch | 1, heads | 1, q_blocks, kv_blocks], or lists of at most as many"
        raise FlexSpecError("FS022", message, fix=fix, where=user_caret())
    if given.dtype == torch.bool:
        return given
    if not given.is_cuda and bool(((given < -1) | (given >= blocks[1])).any()):
        message = f"`{name}` lists a block past the last, {blocks[1] - 1:,}"
        raise FlexSpecError("FS024", message, fix="give -1 for none", where=user_caret())
    places = torch.where((given < 0) | (given >= blocks[1]), blocks[1], given).long()
    table = torch.zeros((*shape[:3], blocks[1] + 1), dtype=torch.bool, device=given.device)
    return table.scatter_(-1, places, True)[..., :-1]


def _blocks(sizes: Sizes, order: Order | None, block: tuple[int, int]) -> tuple[int, int]:
    """Blocks of queries and of keys in memory."""
    found = []
    for side, length, size in (("q", sizes.q_len, block[0]), ("kv", sizes.kv_len, block[1])):
        own = None if order is None else order.side(side)
        found.append(-(-(length if own is None else own.padded(length)) // size))
    return found[0], found[1]


def _asked(selection: Selection, q: Tensor, k: Tensor) -> Tensor:
    """What a selector of the user's own says. FS022, FS023."""
    assert selection.function is not None
    found = selection.function(q, k)
    if not isinstance(found, Tensor) or not (found.dtype == torch.bool or found.is_floating_point()):
        seen = found.dtype if isinstance(found, Tensor) else type(found).__name__
        fix = "return float scores, or a bool choice, [batch | 1, heads | 1, q_blocks, kv_blocks]"
        raise FlexSpecError("FS023", f"the selector returns {seen}", fix=fix, where=user_caret())
    if (found.dtype == torch.bool) != (selection.rule is None):
        message = "the selector returns a choice, and has a rule" if selection.rule else "the selector returns scores"
        fix = "leave rule= out" if selection.rule else "give rule=fs.top_k(8)"
        raise FlexSpecError("FS025", message, fix=fix, where=user_caret())
    return found
