"""Attention patterns as small Python predicates, compiled to exact block-sparse masks and kernels."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import patterns
from .attention import Attention
from .canvas import Canvas
from .errors import FlexSpecError, FlexSpecWarning
from .inputs import Input, Param
from .mask import Mask, from_mask_mod, mask
from .order import Order, axes, by_label, concatenated, dilated, hilbert, morton, row_major, striped, tiled, zigzag
from .patterns import *  # every pattern of the catalog, by its own name
from .score import ScoreMod, from_score_mod, score
from .spec import load
from .syntax import parse
from .text import parse_pattern
from .weight import Weight

if not (Path(__file__).parent / "compiler").is_dir():  # in a checkout, compiler/ lies beside this package
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from flexspec.compiler.backends.reference import reference_attention
    from flexspec.compiler.compile import compile
    from flexspec.compiler.compiled import CompiledAttention
    from flexspec.compiler.fitting.families import Family
    from flexspec.compiler.fitting.fit import Fit, Fits, fit
    from flexspec.compiler.kept_keys import KeptKeys, kept_keys

    from .compiler.blocks.block_map import BlockMap
    from .compiler.blocks.runs import BlockKind
    from .compiler.draw.orders import show_orders
    from .compiler.pipeline import block_map, create_block_mask
    from .compiler.planning.hardware import Hardware
    from .compiler.planning.planner import plan
    from .compiler.planning.plans import Plan, Plans
    from .compiler.proofs.diff import Diff, diff
    from .compiler.proofs.proof import Proof, equals, every_query_attends, implies, is_causal, is_empty
    from .compiler.proofs.reach import Reach, reach

__all__ = [
    "Attention",
    "BlockKind",
    "BlockMap",
    "Canvas",
    "CompiledAttention",
    "Diff",
    "Family",
    "Fit",
    "Fits",
    "FlexSpecError",
    "FlexSpecWarning",
    "Hardware",
    "Input",
    "KeptKeys",
    "Mask",
    "Order",
    "Param",
    "Plan",
    "Plans",
    "Proof",
    "Reach",
    "ScoreMod",
    "Weight",
    "axes",
    "block_map",
    "by_label",
    "compile",
    "concatenated",
    "create_block_mask",
    "diff",
    "dilated",
    "equals",
    "every_query_attends",
    "fit",
    "from_mask_mod",
    "from_score_mod",
    "hilbert",
    "implies",
    "is_causal",
    "is_empty",
    "kept_keys",
    "load",
    "mask",
    "morton",
    "parse",
    "parse_pattern",
    "plan",
    "reach",
    "reference_attention",
    "row_major",
    "score",
    "show_orders",
    "striped",
    "tiled",
    "zigzag",
]
__all__ += patterns.__all__

# The one door to the compiler, opened at the first use of a name: describing patterns stays quick to import.
_COMPILER = {
    "BlockKind": "blocks.runs",
    "BlockMap": "blocks.block_map",
    "CompiledAttention": "compiled",
    "Diff": "proofs.diff",
    "Hardware": "planning.hardware",
    "KeptKeys": "kept_keys",
    "Family": "fitting.families",
    "Fit": "fitting.fit",
    "Fits": "fitting.fit",
    "Plan": "planning.plans",
    "Plans": "planning.plans",
    "Proof": "proofs.proof",
    "Reach": "proofs.reach",
    "block_map": "pipeline",
    "compile": "compile",
    "create_block_mask": "pipeline",
    "diff": "proofs.diff",
    "equals": "proofs.proof",
    "every_query_attends": "proofs.proof",
    "fit": "fitting.fit",
    "implies": "proofs.proof",
    "is_causal": "proofs.proof",
    "is_empty": "proofs.proof",
    "kept_keys": "kept_keys",
    "plan": "planning.planner",
    "reach": "proofs.reach",
    "reference_attention": "backends.reference",
    "show_orders": "draw.orders",
}


def __getattr__(name: str) -> Any:
    if name in _COMPILER:
        return getattr(import_module(f"flexspec.compiler.{_COMPILER[name]}"), name)
    raise AttributeError(f"module 'flexspec' has no attribute {name!r}")
