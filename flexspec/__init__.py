"""Attention patterns as small Python predicates, compiled to exact block-sparse masks and kernels.

A name is imported when it is first used, so `import flexspec` takes no torch. `__init__.pyi` says the same to type
checkers.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from .patterns.listing import listing as _listing

if not (Path(__file__).parent / "compiler").is_dir():  # in a checkout, compiler/ lies beside this package
    __path__.append(str(Path(__file__).parent.parent))

# The names at the top, by the module that holds them; every mask of the catalog is at the top too.
_TOP = {
    "attention": "Attention",
    "canvas": "Canvas",
    "errors": "FlexSpecError FlexSpecWarning",
    "inputs": "Input Param",
    "mask": "Mask from_mask_mod mask",
    "orders": "Order axes row_major striped tiled",
    "patterns": "alibi last_global sink_logit softcap",
    "selecting": "chosen select selector",
    "selection": "share threshold top_k top_p",
    "score": "ScoreMod from_score_mod score",
    "spec": "load",
    "syntax": "parse",
    "text": "parse_pattern",
    "weight": "Weight",
    "compiler.backends.base": "Backend",
    "compiler.compile": "compile",
    "compiler.compiled": "CompiledAttention",
    "compiler.backends.reference": "reference_attention",
    "compiler.backends.stored": "QuantisedTensor quantise",
    "compiler.blocks.block_map": "BlockMap",
    "compiler.blocks.runs": "BlockKind",
    "compiler.kept_keys": "KeptKeys kept_keys",
    "compiler.draw.orders": "show_orders",
    "compiler.fitting.families": "Family",
    "compiler.fitting.fit": "Fit Fits fit",
    "compiler.measuring.measure": "Measures measure",
    "compiler.measuring.recall": "Recall recall",
    "compiler.measuring.rollout": "Rollout rollout",
    "compiler.merging": "merge",
    "compiler.maps": "block_map create_block_mask",
    "compiler.planning.hardware": "Hardware",
    "compiler.planning.planner": "plan",
    "compiler.planning.plans": "Plan Plans",
    "compiler.proofs.diff": "diff",
    "compiler.proofs.proof": "equals",
    "compiler.proofs.reach": "reach",
}

# Names of a namespace that work at the top too, where most of them were once; `dir` does not show them.
_BESIDE = {
    "orders": "by_label concatenated dilated hilbert morton zigzag",
    "patterns": "CATALOG Entry TOKEN_TYPES distance_scale identity_mix key_gain relative_bias relu_weight "
    "sigmoid_weight signed_weight squared_relu_weight swin_bias t5_bias t5_buckets taylor_weight",
    "compiler.proofs.diff": "Diff",
    "compiler.proofs.proof": "Proof every_query_attends implies is_causal is_empty",
    "compiler.proofs.reach": "Reach",
    "compiler.selecting.choices": "resolved",
}

_NAMESPACES = {
    "orders": "orders",
    "patterns": "patterns",
    "proofs": "proofs",
    "scores": "patterns.scores",
    "weights": "patterns.weights",
}

_HOMES = {name: module for table in (_BESIDE, _TOP) for module, names in table.items() for name in names.split()}


class _Package(ModuleType):
    """The package, in which the functions `mask` and `score` are not replaced by the modules that hold them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):  # importing a submodule sets it here
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


@cache
def _masks() -> list[str]:
    return [pattern.name for pattern in _listing() if pattern.kind == "mask"]


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted([*" ".join(_TOP.values()).split(), *_masks()])
    if name in _NAMESPACES:
        value: Any = import_module(f"{__name__}.{_NAMESPACES[name]}")
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name.isidentifier() and find_spec(f"{__name__}.{name}"):
        value = import_module(f"{__name__}.{name}")
    elif name in _masks():
        value = getattr(import_module(f"{__name__}.patterns"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__getattr__("__all__"), *_NAMESPACES])
