"""What was made of a spec, stage by stage, as text or as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexspec.attention import Attention
from flexspec.expr import infix_text, var
from flexspec.inputs import Bound

from .backends.base import Backend, Description
from .backends.weights import softmax_scores
from .blocks.block_map import BlockMap
from .blocks.on_device import DeviceMap, report_lines
from .blocks.runs import BlockKind
from .pipeline import Lowered, Stages
from .proofs.count import pairs_formula
from .proofs.proof import Proof, ahead, lonely, never
from .simplify.specialise import specialise

_LONG = 100


@dataclass
class Report:
    """One compilation at given sizes, and what is asked of it."""

    lowered: Lowered
    backend: str
    first: Backend
    """The backend that a call asks first; `backend` is what was asked for by name."""
    bound: Bound
    stages: Stages
    head_dim: int
    on_device: DeviceMap | None = None
    """What a call computes with `exact=False`."""

    @property
    def spec(self) -> Attention:
        return self.lowered.attention

    @property
    def block_map(self) -> BlockMap:
        assert isinstance(self.lowered.block_map, BlockMap)
        return self.lowered.block_map

    @property
    def mask_formula(self) -> str:
        return infix_text(self.spec.parts.mask.expr)

    @cached_property
    def proofs(self) -> dict[str, Proof]:
        """What is known of the mask at these lengths (in logical positions; padding of an order left out)."""
        return {
            "causal": never(self.spec.parts.mask, ahead(self.spec.parts.mask), self.bound),
            "every query attends": never(self.spec.parts.mask, self.spec.parts.mask.expr, self.bound, lonely),
        }

    @cached_property
    def described(self) -> Description:
        """What the backend makes of it."""
        return self.first.describe(self.lowered)

    def flops(self) -> tuple[int, float]:
        """Forward FLOPs over the blocks that are not empty (2 matrix products a softmax), and their share of dense."""
        heads = (self.bound.sizes.batch or 1) * (self.bound.sizes.heads or 1)
        heads *= len(softmax_scores(self.lowered.weight, self.lowered.score))
        dense = 4 * heads * self.block_map.q_len * self.block_map.kv_len * self.head_dim
        density = (self.on_device or self.block_map).density
        return round(dense * density), density

    def facts(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        block_map, counts = self.block_map, self.block_map.counts()
        flops, share = self.flops()
        return {
            "spec": self.spec.label,
            "formula": self.mask_formula,
            "score": infix_text(self.spec.parts.score.expr),
            "weight": self.spec.weight.label if self.spec.weight else None,
            "order": str(self.lowered.order) if self.lowered.order else None,
            "q_len": self.bound.sizes.q_len,
            "kv_len": self.bound.sizes.kv_len,
            "block_size": [block_map.block_q, block_map.block_kv],
            "blocks": {kind.name.lower(): count for kind, count in counts.items()},
            "block_density": block_map.density,
            "computed_density": (self.on_device or block_map).density,
            "token_density": block_map.token_density,
            "flops": flops,
            "fraction_of_dense": share,
            "map_bytes": block_map.nbytes,
            "depends_on_batch": block_map.batch > 1,
            "depends_on_head": block_map.heads > 1,
            "proofs": {
                name: {"holds": proof.holds, "counterexample": proof.counterexample}
                for name, proof in self.proofs.items()
            },
            "relied_on": self.described.relied_on,
            "seconds": self.stages.seconds,
        }


def explain(report: Report, *, latex: bool = False) -> str:
    """The report under the headings SPEC, EXPR, SIMPLIFIED, BLOCKS, KERNEL, PROOFS."""
    sections = {
        "SPEC": _spec(report),
        "EXPR": _expr(report, latex),
        "SIMPLIFIED": _simplified(report),
        "BLOCKS": _blocks(report),
        "KERNEL": _kernel(report),
        "PROOFS": _proofs(report),
    }
    parts = []
    for name, lines in sections.items():
        seconds = report.stages.seconds.get(name)
        heading = name if seconds is None else f"{name}  ({seconds * 1e3:.1f} ms)"
        parts.append("\n".join([heading, *(f"  {line}" for line in lines)]))
    return "\n".join(parts)


def _spec(report: Report) -> list[str]:
    lines = [report.spec.label]
    if report.spec.parts.mask.on:
        lines.append(str(report.spec.parts.mask.on))
    if report.lowered.order:
        lines.append(f"order {report.lowered.order}")
    values: dict[str, Any] = dict(report.bound.numbers)
    values |= {name: f"{str(t.dtype)[6:]}{list(t.shape)}" for name, t in report.bound.tensors.items()}
    return lines + [f"{name} = {value}" for name, value in values.items()]


def _expr(report: Report, latex: bool) -> list[str]:
    lines = [f"keep   {report.mask_formula}"]
    square = report.bound.sizes.q_len == report.bound.sizes.kv_len
    pairs = pairs_formula(specialise(report.spec.parts.mask.expr, report.bound.numbers, {})) if square else None
    if pairs is not None:
        lines.append(f"pairs  {pairs}")
    if report.lowered.score is not var("score"):
        lines.append(f"score  {infix_text(report.spec.parts.score.expr)}")
    if report.spec.parts.weight:
        lines.append(f"weight {report.spec.parts.weight.definition}")
    if latex:
        from .printers.latex import to_latex  # sympy is slow to import

        lines.append(f"latex  {to_latex(report.spec.parts.mask.expr)}")
    return lines


def _simplified(report: Report) -> list[str]:
    unique = report.stages.results["SIMPLIFIED"]
    shown = [_short(infix_text(expr)) for expr in unique[:4]]
    return shown + ([f"... {len(unique)} distinct masks in all"] if len(unique) > 4 else [])


def _short(text: str) -> str:
    return text if len(text) <= 6 * _LONG else text[: 6 * _LONG] + " ..."


def _blocks(report: Report) -> list[str]:
    block_map, trail = report.block_map, report.stages.results["BLOCKS"]
    counts = block_map.counts()
    flops, share = report.flops()
    total = sum(counts.values())
    kinds = ", ".join(f"{count:,} {kind.name.lower()} ({count / total:.2%})" for kind, count in counts.items())
    distinct = f"{len(block_map.maps)} distinct map{'s' if len(block_map.maps) > 1 else ''}"
    lengths = f"{block_map.q_len:,} x {block_map.kv_len:,} tokens"
    return [
        f"{lengths} in blocks of {block_map.block_q} x {block_map.block_kv}, {distinct}",
        kinds,
        *(report_lines(report.on_device, block_map) if report.on_device else ()),
        f"token density {block_map.token_density:.4%}, block density {block_map.density:.4%}",
        f"{flops:.3g} FLOPs forward at head_dim {report.head_dim}: {share:.4f} of dense",
        f"{block_map.nbytes:,} bytes hold the map",
        f"decided by {sum(trail.boxes):,} boxes; {trail.witnessed:,} blocks by witnesses, "
        f"{trail.evaluated:,} by evaluation (empty and full ones by bounds)",
    ]


def _kernel(report: Report) -> list[str]:
    lines = [f"backend {report.backend}", *report.described.source]
    if report.block_map.counts()[BlockKind.FULL]:
        lines.append("full blocks skip the mask_mod")
    return lines + report.described.options


def _proofs(report: Report) -> list[str]:
    lines = []
    for name, proof in report.proofs.items():
        if proof.holds:
            lines.append(f"{name}: yes")
        else:
            pair = zip(("b", "h", "q", "kv"), proof.counterexample or (), strict=True)
            shown = ", ".join(f"{index} = {value}" for index, value in pair if value is not None)
            lines.append(f"{name}: no, e.g. {shown}")
    lines += report.described.proofs
    for name, size in (("batch", report.block_map.batch), ("head", report.block_map.heads)):
        lines.append(f"differs by {name} at these values: {f'yes, {size} maps' if size > 1 else 'no'}")
    return lines
