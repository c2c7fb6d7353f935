"""FlexAttention's FLASH kernels (FlashAttention 4, in CuTe DSL) over the same functions and block lists as `flex`.

torch decides late, and in part not at all, whether they can run a call: `reasons_against` asks before. What it knows
was read in torch 2.11 to 2.13 (_inductor/kernel/flex, _inductor/codegen/cutedsl) and in flash-attn-4 4.0.0b36.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch

from flexspec.expr import Apply, Const, Expr, walk
from flexspec.ops import CASTS, OPS, Type

from ..blocks.block_map import BlockMap
from ..blocks.integer_range import needs_64_bits, remainders_of_negatives
from ..pipeline import Lowered
from ..simplify.rules import simplify
from .base import Backend, Call, Description, Result
from .flex import SMALL, Options, compiled
from .weights import by_softmax, printed, softmax_scores

OPTIONS: Options = (("BACKEND", "FLASH"),)
BLOCKS_Q = {9: (128, 256), 10: (256,), 11: (256,)}
"""Queries of a block, by the major compute capability. Hopper's tile has 64 or 128 rows; Blackwell's two have 256. The
next multiples of 192 would select a tile of 192 x 144 for some head_dims, which fits no list of 128 keys."""
BLOCK_KV = 128
"""Keys of a block: those of a tile, forward and backward, up to `MOST_CHANNELS`."""
MOST_CHANNELS = 128
"""Wider heads have narrower tiles, which differ between forward and backward."""
NAMES = {
    **{"div": "truediv", "mod": "remainder", "min": "minimum", "max": "maximum"},
    **{"lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift"},
    **dict.fromkeys(CASTS, "to_dtype"),
}
"""Inductor's names of operators, where they are others than ours."""
LOGICAL = ("and", "or", "xor", "not")
"""Operators that are two in Inductor, by the type of their operands."""


def reasons_against(call: Call) -> list[str]:
    capability = _capability(call.q.device)
    reasons = _missing(capability)
    if call.q.dtype not in (torch.float16, torch.bfloat16):
        reasons.append(f"FLASH computes in float16 and bfloat16, not in {call.q.dtype}")
    for name, channels in (("head_dim", call.q.shape[-1]), ("v's head_dim", call.v.shape[-1])):
        if channels % 8 or not 16 <= channels <= MOST_CHANNELS:
            reasons.append(f"{name} is {channels}; here FLASH takes multiples of 8 from 16 to {MOST_CHANNELS}")
    if capability in BLOCKS_Q:
        reasons += _blocks_against(call.lowered, capability)
    reasons += call.lowered.derive(_mask_against)
    for score in softmax_scores(call.lowered.weight, call.score):
        reasons += call.lowered.derive(_score_against, score)
    return list(dict.fromkeys(reasons + _gradients_against(call)))


def _missing(capability: int | None) -> list[str]:
    """What this torch, GPU and installation lack."""
    reasons = []
    if torch.__version__ < (2, 11):
        reasons.append(f"FLASH needs torch 2.11 or newer, and this is {torch.__version__}")
    if capability not in BLOCKS_Q:
        seen = "the tensors are on none" if capability is None else f"this one has {capability}.x"
        reasons.append(f"FLASH with block lists needs an NVIDIA GPU of compute capability 9.x to 11.x, and {seen}")
    if not _package():
        reasons.append("the package flash-attn-4 (flash_attn.cute) is not installed")
    return reasons


def _capability(device: torch.device) -> int | None:
    """The major compute capability; None of what is no NVIDIA GPU."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)[0]


@lru_cache(maxsize=1)
def _package() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ImportError:  # there is no flash_attn, or an older one that is broken
        return False


def _blocks_against(lowered: Lowered, capability: int) -> list[str]:
    grid, blocks_q = lowered.grid, BLOCKS_Q[capability]
    if grid.block_q in blocks_q and grid.block_kv == BLOCK_KV:
        return []
    seen = f"blocks are {grid.block_q} x {grid.block_kv}"
    taken = " or ".join(f"({block_q}, {BLOCK_KV})" for block_q in blocks_q)
    return [f"{seen}; on compute capability {capability}.x FLASH takes block_size={taken}"]


def _mask_against(lowered: Lowered) -> list[str]:
    mask = simplify(lowered.mask)
    if isinstance(mask, Const) and not mask.value:
        return ["torch takes a mask that is constant for one that keeps all, and this one keeps nothing"]
    return _expression_against(lowered, mask)


def _score_against(lowered: Lowered, score: Expr) -> list[str]:
    return _expression_against(lowered, simplify(score))


def _expression_against(lowered: Lowered, expr: Expr) -> list[str]:
    """What torch cannot print as CuTe DSL, or prints with another meaning."""
    reasons = []
    lacking = sorted({node.op for node in walk(expr) if isinstance(node, Apply)} - _printable())
    if lacking:
        reasons.append(f"torch {torch.__version__} cannot print {', '.join(lacking)} for FLASH")
    if any(node.type is Type.DOUBLE for node in walk(expr)):
        reasons.append("FLASH has no 64-bit floats")
    if not isinstance(lowered.block_map, BlockMap):
        return [*reasons, "exact=False: FLASH computes integers in 32 bits, and their ranges are not known"]
    if needs_64_bits(expr, lowered.values, lowered.grid):
        reasons.append("FLASH computes integers in 32 bits, and some may be larger")
    if remainders_of_negatives(expr, lowered.values, lowered.grid):
        reasons.append("FLASH's remainder has the sign of the dividend, and an operand of % may be negative")
    return reasons


@lru_cache(maxsize=1)
def _printable() -> frozenset[str]:
    """Our operators that this torch's printer of CuTe DSL knows; what it only inherits is C++ or an error."""
    from torch._inductor.codegen.cutedsl.cutedsl_op_overrides import CuteDSLOpOverrides  # slow to import

    known = vars(CuteDSLOpOverrides)
    simple = {name for name in OPS if NAMES.get(name, name) in known}
    pairs = {name for name in LOGICAL if f"logical_{name}" in known and f"bitwise_{name}" in known}
    return frozenset(simple | pairs)


def _gradients_against(call: Call) -> list[str]:
    """What its backward pass refuses. A tensor that wants a gradient is refused in the forward pass too."""
    reasons, lowered = [], call.lowered
    read = frozenset[str]().union(*(score.names for score in softmax_scores(lowered.weight, call.score)))
    held = [name for name in read & call.bound.tensors.keys() if call.bound.tensors[name].requires_grad]
    if held:
        reasons.append(f"FLASH gives no gradient to {', '.join(sorted(held))}, which a score reads: detach it")
    needs_lse = call.return_lse or (lowered.weight is not None and lowered.weight.kind != "taylor")
    if needs_lse and torch.__version__ < (2, 13):
        reasons.append(f"torch {torch.__version__} takes FLASH's natural lse for one of base 2")
    if not call.wants_gradients:
        return reasons
    if needs_lse:
        reasons.append("FLASH has no gradient of the lse, which this call returns or its weight is computed from")
    if call.deterministic and not torch.is_deterministic_algorithms_warn_only_enabled():
        reasons.append("deterministic algorithms are asked for, and FLASH's backward pass over block lists is not one")
    return reasons


def run(call: Call) -> Result:
    return by_softmax(call, _softmax)


def _softmax(call: Call) -> Result:
    return compiled(call, call.q, options=OPTIONS)


def describe(lowered: Lowered) -> Description:
    """The functions, as flex has them, and what was asked before."""
    assert isinstance(lowered.block_map, BlockMap)
    exprs = (lowered.mask, *softmax_scores(lowered.weight, lowered.score))
    facts = {SMALL: not any(needs_64_bits(each, lowered.values, lowered.grid) for each in exprs)}
    options = [f"kernel_options={dict(OPTIONS)}"]
    return Description(printed(lowered), options, [f"{SMALL}: {'yes' if facts[SMALL] else 'no'}"], facts)


FLASH = Backend("flash", reasons_against, run, describe)
