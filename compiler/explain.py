"""What was made of a spec, stage by stage, as text or as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexspec.attention import Attention
from flexspec.expr import Expr, infix_text, var
from flexspec.inputs import Bound
from flexspec.order import Order

from .backends.weights import softmax_scores
from .blocks.block_map import BlockMap
from .blocks.flex_lists import contiguous_lists
from .blocks.integer_range import needs_64_bits
from .blocks.runs import BlockKind
from .pipeline import Stages
from .printers.python import source_of
from .proofs.count import pairs_formula
from .proofs.proof import Proof, ahead, lonely, never
from .simplify.specialise import specialise

_LONG = 100
RUNS = {"kv side": "fwd_BLOCKS_ARE_CONTIGUOUS", "q side": "bwd_BLOCKS_ARE_CONTIGUOUS"}
SMALL = "integers fit 32 bits"


@dataclass
class Report:
    """One compilation at given sizes, and what is asked of it."""

    spec: Attention
    order: Order | None
    backend: str
    bound: Bound
    block_map: BlockMap
    stages: Stages
    head_dim: int
    mask: Expr
    score: Expr

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
    def relied_on(self) -> dict[str, bool]:
        """What the flex backend passes on to CUDA kernels where it is true; taken wrongly, results would be wrong."""
        contiguous = contiguous_lists(self.block_map)
        facts = {option: option in contiguous for option in RUNS.values()}
        return facts | {SMALL: not needs_64_bits(self.mask, self.bound, self.block_map.grid)}

    def flops(self) -> tuple[int, float]:
        """Forward FLOPs over the blocks that are not empty (2 matrix products a softmax), and their share of dense."""
        heads = (self.bound.sizes.batch or 1) * (self.bound.sizes.heads or 1)
        heads *= len(softmax_scores(self.spec.parts.weight, self.score))
        dense = 4 * heads * self.block_map.q_len * self.block_map.kv_len * self.head_dim
        return round(dense * self.block_map.density), self.block_map.density

    def facts(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        made, counts = self.block_map, self.block_map.counts()
        flops, share = self.flops()
        return {
            "spec": self.spec.label,
            "formula": self.mask_formula,
            "score": infix_text(self.spec.parts.score.expr),
            "weight": self.spec.weight.label if self.spec.weight else None,
            "order": str(self.order) if self.order else None,
            "q_len": self.bound.sizes.q_len,
            "kv_len": self.bound.sizes.kv_len,
            "block_size": [made.block_q, made.block_kv],
            "blocks": {kind.name.lower(): count for kind, count in counts.items()},
            "block_density": made.density,
            "token_density": made.token_density,
            "flops": flops,
            "fraction_of_dense": share,
            "map_bytes": made.nbytes,
            "depends_on_batch": made.batch > 1,
            "depends_on_head": made.heads > 1,
            "proofs": {
                name: {"holds": proof.holds, "counterexample": proof.counterexample}
                for name, proof in self.proofs.items()
            },
            "relied_on": self.relied_on,
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
    if report.spec.parts.mask.canvas:
        lines.append(str(report.spec.parts.mask.canvas))
    if report.order:
        lines.append(f"order {report.order}")
    values: dict[str, Any] = dict(report.bound.numbers)
    values |= {name: f"{str(t.dtype)[6:]}{list(t.shape)}" for name, t in report.bound.tensors.items()}
    return lines + [f"{name} = {value}" for name, value in values.items()]


def _expr(report: Report, latex: bool) -> list[str]:
    lines = [f"keep   {report.mask_formula}"]
    square = report.bound.sizes.q_len == report.bound.sizes.kv_len
    pairs = pairs_formula(specialise(report.spec.parts.mask.expr, report.bound.numbers, {})) if square else None
    if pairs is not None:
        lines.append(f"pairs  {pairs}")
    if report.score is not var("score"):
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
    made, counts, trail = report.block_map, report.block_map.counts(), report.stages.results["BLOCKS"]
    flops, share = report.flops()
    total = sum(counts.values())
    kinds = ", ".join(f"{count:,} {kind.name.lower()} ({count / total:.2%})" for kind, count in counts.items())
    each = f"{len(made.maps)} distinct map{'s' if len(made.maps) > 1 else ''}"
    return [
        f"{made.q_len:,} x {made.kv_len:,} tokens in blocks of {made.block_q} x {made.block_kv}, {each}",
        kinds,
        f"token density {made.token_density:.4%}, block density {made.density:.4%}",
        f"{flops:.3g} FLOPs forward at head_dim {report.head_dim}: {share:.4f} of dense",
        f"{made.nbytes:,} bytes hold the map",
        f"decided by {sum(trail.boxes):,} boxes; {trail.witnessed:,} blocks by witnesses, "
        f"{trail.evaluated:,} by evaluation (empty and full ones by bounds)",
    ]


def _kernel(report: Report) -> list[str]:
    lines = [f"backend {report.backend}"]
    lines += source_of(report.mask, kind="mask_mod").splitlines()
    for score in softmax_scores(report.spec.parts.weight, report.score):
        lines += [] if score is var("score") else source_of(score, kind="score_mod").splitlines()
    if report.block_map.counts()[BlockKind.FULL]:
        lines.append("full blocks skip the mask_mod")
    if report.backend != "reference":
        facts = report.relied_on
        options = [name for name in facts if name.endswith("CONTIGUOUS") and facts[name]]
        options += [] if facts[SMALL] else ["64-bit positions"]
        lines.append(f"on CUDA, by the proofs below: {', '.join(options) or 'no kernel options'}")
    return lines


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _proofs(report: Report) -> list[str]:
    lines = []
    for name, proof in report.proofs.items():
        if proof.holds:
            lines.append(f"{name}: yes")
        else:
            at = dict(zip(("b", "h", "q", "kv"), proof.counterexample or (), strict=True))
            lines.append(f"{name}: no, e.g. {', '.join(f'{k} = {x}' for k, x in at.items() if x is not None)}")
    if report.backend != "reference":
        runs = [f"{side} {_yes(report.relied_on[option])}" for side, option in RUNS.items()]
        lines.append(f"each list of blocks is one run: {', '.join(runs)}")
        lines.append(f"{SMALL}: {_yes(report.relied_on[SMALL])}")
    for name, size in (("batch", report.block_map.batch), ("head", report.block_map.heads)):
        lines.append(f"differs by {name} at these values: {f'yes, {size} maps' if size > 1 else 'no'}")
    return lines
