"""`fs.compile(..., order="auto")`: attention that plans at its first call of a size and runs what it chose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError
from flexspec.expr import Expr, inputs_of
from flexspec.mask import Mask
from flexspec.order import Order
from flexspec.positions import GIVEN
from flexspec.user_line import user_caret

from .backends.base import check_qkv
from .blocks.grid import BlockSize
from .compiled import CompiledAttention
from .evaluation.points import as_array
from .planning.counting import alone
from .planning.hardware import hardware_at
from .planning.planner import plan
from .planning.plans import Plans, range_text
from .planning.ranking import moves
from .simplify.specialise import specialise

AUTO: Final = "auto"
Make = Callable[[Attention, Order | None, BlockSize], CompiledAttention]


@dataclass(frozen=True)
class Part:
    """Heads that run together, and the attention that they run; heads is None where all run together."""

    heads: tuple[int, ...] | None
    attend: CompiledAttention

    def __str__(self) -> str:
        block = self.attend.block_size
        size = f"{block[0]} x {block[1]}" if isinstance(block, tuple) else block
        where = f"heads {range_text(self.heads)}: " if self.heads else ""
        return f"{where}order {self.attend.order or 'as is'}, blocks of {size}"


class Choice(NamedTuple):
    """The plans for one size of call, and what runs because of them."""

    plans: Plans
    parts: list[Part]


@dataclass(eq=False, repr=False)
class PlannedAttention:
    """Attention whose order, or block size, the planner chooses: once for each size of call. Made by `fs.compile`.

    A mask that differs by head runs each kind of head in an order of its own, where the plan says that this is quicker
    and nothing but the mask differs by head. What is chosen depends on the first call's values and device; the result
    does not. `attend.parts(length)[0].attend.block_map(length)` is the map that it runs.
    """

    spec: Attention
    order: Order | str | None
    block_size: BlockSize | str
    make: Make
    _kept: dict[tuple[Any, ...], Choice] = field(default_factory=dict)

    def __repr__(self) -> str:
        chosen = dict.fromkeys("; ".join(map(str, choice.parts)) for choice in self._kept.values())
        return f"compile({self.spec.label}, order={self.order}{''.join(f', {text}' for text in chosen)})"

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
        """As `CompiledAttention`, for q, k, v in logical order and without pages (FS033)."""
        call = self._call
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:  # which is slow to import
            call = torch.compiler.disable(call)  # inside a compiled model it is a graph break
        return call(q, k, v, options)

    def _call(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> Any:
        for name in ("inputs", "page_table", "kv_len", *GIVEN.values()):
            if options.pop(name, None) not in (None, "logical"):
                message = f"`{name}` is given, and the order is the planner's choice"
                fix = "compile with the order of fs.plan(...).best"
                raise FlexSpecError("FS033", message, fix=fix, where=user_caret())
        check_qkv(q, k, v)
        with_lse = options.pop("return_lse", False)
        heads = q.shape[1], k.shape[1]
        parts = self._planned(q.shape[2], k.shape[2], q.shape[0], heads, q.shape[3], q.device, options).parts
        if parts[0].heads is None:
            return parts[0].attend(q, k, v, return_lse=with_lse, **options)
        order = torch.tensor([head for part in parts for head in part.heads or ()], device=q.device).argsort()
        results = [self._run(part, q, k, v, with_lse, options) for part in parts]
        if not with_lse:
            return torch.cat(results, 1).index_select(1, order)
        return tuple(torch.cat(by_part, 1).index_select(1, order) for by_part in zip(*results, strict=True))

    def _run(self, part: Part, q: Any, k: Any, v: Any, with_lse: bool, values: Mapping[str, Any]) -> Any:
        """Output, or output and lse, of some heads."""
        heads, group = part.heads or (), q.shape[1] // k.shape[1]
        keys = [head // group for head in heads]
        whole = list(dict.fromkeys(keys))
        if list(heads) == [key * group + i for key in whole for i in range(group)]:
            keys = whole  # these key heads serve no other part
        q, k, v = q[:, list(heads)], k[:, keys], v[:, keys]
        return part.attend(q, k, v, return_lse=with_lse, **_own(part, self.spec, values))

    def _planned(
        self, q_len: int, kv_len: int, batch: int | None, heads: Any, head_dim: int, device: Any, values: Any
    ) -> Choice:
        key = (q_len, kv_len, heads, head_dim, device)
        if key not in self._kept:
            plans = plan(
                self.spec,
                q_len,
                kv_len,
                hardware=hardware_at(device),
                batch=batch,
                heads=heads[0],
                kv_heads=heads[1],
                head_dim=head_dim,
                block_sizes=None if self.block_size == AUTO else [self.block_size],  # type: ignore[list-item]
                orders=None if self.order == AUTO else [self.order],  # type: ignore[list-item]
                check=0,
                **values,
            )
            self._kept[key] = Choice(plans, self._parts(plans))
        return self._kept[key]

    def _parts(self, plans: Plans) -> list[Part]:
        if plans.by_head and plans.seconds_by_head < plans.best.seconds:
            masks = by_head(self.spec, plans.shape.heads)
            if masks is not None and list(masks) == [group.heads for group in plans.by_head]:
                specs = [replace(self.spec, mask=mask) for mask in masks.values()]
                chosen = zip(masks, specs, plans.by_head, strict=True)
                return [Part(heads, self._compiled(spec, group.plans)) for heads, spec, group in chosen]
        return [Part(None, self._compiled(self.spec, plans))]

    def _compiled(self, spec: Attention, plans: Plans) -> CompiledAttention:
        order = plans.best.order if moves(plans.best.order, plans.shape.q_len) else None
        return self.make(spec, order, plans.best.block_size)

    def plans(self, q_len: int, kv_len: int | None = None, **sizes: Any) -> Plans:
        """The table that a call of these sizes chooses from. sizes: batch, heads, kv_heads, head_dim, and values."""
        return self._chosen(q_len, kv_len, **sizes).plans

    def parts(self, q_len: int, kv_len: int | None = None, **sizes: Any) -> list[Part]:
        """What a call of these sizes runs (see `plans`): one attention, or one for each group of heads."""
        return self._chosen(q_len, kv_len, **sizes).parts

    def _chosen(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int | None = None,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_dim: int = 64,
        **values: Any,
    ) -> Choice:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        both = heads, heads if kv_heads is None else kv_heads
        return self._planned(q_len, q_len if kv_len is None else kv_len, batch, both, head_dim, device, values)

    def explain(self, q_len: int, kv_len: int | None = None, *, latex: bool = False, **sizes: Any) -> str:
        """The table of plans, and what `CompiledAttention.explain` says of each part that runs."""
        plans, parts = self._chosen(q_len, kv_len, **sizes)
        lines = ["PLAN", *(f"  {line}" for line in str(plans).splitlines())]
        options = {name: value for name, value in sizes.items() if name not in ("heads", "kv_heads")}
        for part in parts:
            heads = len(part.heads) if part.heads else sizes.get("heads")
            own = _own(part, self.spec, options, ("batch", "head_dim"))
            lines += [str(part), part.attend.explain(q_len, kv_len, heads=heads, latex=latex, **own)]
        return "\n".join(lines)


def by_head(spec: Attention, heads: int) -> dict[tuple[int, ...], Mask] | None:
    """Heads whose masks are the same expression, with it; None where anything but the mask differs by head.

    Only what the mask holds is filled in, so that no value of a later call makes it wrong.
    """
    mask = spec.mask
    beside = [*spec.scores, *([spec.weight] if spec.weight else [])]
    if any(_reads_heads(formula.expr) for formula in beside):
        return None
    held = {name: as_array(tensor) for name, tensor in mask.tensors.items()}
    groups: dict[Expr, list[int]] = {}
    for head in range(heads):
        groups.setdefault(specialise(mask.expr, {"h": head, "heads": heads}, held), []).append(head)
    if any(_reads_heads(expr) for expr in groups):
        return None
    return {tuple(same): alone(mask, expr, mask.tensors) for expr, same in groups.items()}


def _reads_heads(expr: Expr) -> bool:
    return bool(expr.names & {"h", "heads"}) or any("heads" in node.dims for node in inputs_of(expr).values())


def _own(part: Part, whole: Attention, values: Mapping[str, Any], plain: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values that a part reads, and those that nothing reads, so that it says so."""
    return {
        name: value
        for name, value in values.items()
        if name in plain or name in part.attend.spec.parts.names or name not in whole.parts.names
    }
