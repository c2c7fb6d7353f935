"""FlexAttention as a backend: a mask_mod and a score_mod as source, block lists, and one compiled function per spec.

torch falls back to eager, silently, after eight recompiles of one code object. So each combination of spec, dtype and
head layout has code objects of its own, lengths are dynamic, and values are captured tensors.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn.attention import flex_attention as torch_flex

from flexspec.errors import FlexSpecWarning
from flexspec.expr import Expr, const, inputs_of, substitute, var
from flexspec.positions import NAMES
from flexspec.user_line import user_level

from ..blocks.block_map import BlockMap
from ..blocks.flex_lists import contiguous_lists, to_flex
from ..blocks.grid import Grid
from ..blocks.integer_range import needs_64_bits
from ..pipeline import Lowered
from ..printers.python import function_of, run_source, source_of
from .base import Backend, BackendFailed, Call, Description, Result
from .reference import by_rows
from .weights import by_softmax, printed

ONE_QUERY_ROWS = 16
"""On CPU, one query against 512 keys or more is wrong or broken in torch: the query is repeated to this many rows."""
DENSE_BYTES = 1 << 26
"""Index lists up to this size are as wide as torch's: a new width or row stride compiles the kernel again, and a window
or documents must not. Past it they are compact, so that long sequences fit."""
SMALL = "integers fit 32 bits"
RUNS = {"kv side": "fwd_BLOCKS_ARE_CONTIGUOUS", "q side": "bwd_BLOCKS_ARE_CONTIGUOUS"}
"""Options of torch's CUDA kernels, by the side whose lists they are about."""


def reasons_against(call: Call) -> list[str]:
    reasons = []
    if call.q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f"FlexAttention has no {call.q.dtype}")
    if call.q.device.type == "cpu":
        if call.wants_gradients:
            reasons.append("FlexAttention has no backward pass on CPU")
        if not _cpp_compiler():
            reasons.append("torch.compile finds no C++ compiler")
    elif call.deterministic and call.wants_gradients and call.trained:
        names = ", ".join(call.trained)
        reasons.append(f"FlexAttention adds up the gradient of {names}, which a score reads, in no fixed order")
    return reasons


def run(call: Call) -> Result:
    return by_softmax(call, _softmax)


def _softmax(call: Call) -> Result:
    if call.q.device.type != "cpu":
        return compiled(call, call.q)
    if call.return_lse:
        message = "the reference runs this, because FlexAttention gives no lse on CPU"
        warnings.warn(message, FlexSpecWarning, stacklevel=user_level())
        lowered = call.lowered
        scale = lowered.attention.scale
        out, lse = by_rows(lowered.mask, call.score, scale, call.bound, call.q, call.k, call.v)
        return out.to(call.q.dtype), lse.to(torch.float32)
    if call.q.shape[2] > 1 or call.k.shape[2] < 512:
        return compiled(call, call.q)
    rows = call.q.expand(-1, -1, ONE_QUERY_ROWS, -1).contiguous()
    return compiled(call, rows, one_query=True)[0][:, :, :1], None


Options = tuple[tuple[str, bool | str], ...]
"""Kernel options of torch's flex_attention, by name."""


class Kernel(NamedTuple):
    """What a kernel is compiled for: calls that agree in this share code objects.

    options: torch's kernel options. scale, lse: of the call. group: query heads of a key head. specialised: what torch
    would compile anew for, in batch and lengths: a size of 1 is never dynamic, and lengths that are equal once are
    taken to be equal always. fixed: sizes of captured tensors that are no lengths.
    """

    mask: str
    score: str
    options: Options
    scale: float | None
    lse: bool
    dtype: torch.dtype
    device: str
    group: int
    head_dims: tuple[int, int]
    lists: tuple[bool, bool]
    one_query: bool
    specialised: tuple[bool, ...]
    fixed: tuple[tuple[int, ...], ...]


def compiled(call: Call, q: torch.Tensor, one_query: bool = False, options: Options | None = None) -> Result:
    """Through `torch.compile(flex_attention)`, never eager.

    options: in place of those that are proven of the block lists, which are for torch's Triton kernels.
    """
    lowered, k, v = call.lowered, call.k, call.v
    device = q.device
    score_mod, fixed = _score_mod(call, device, one_query)
    block_mask = lowered.derive(_block_mask, device, one_query)
    layout = (q.shape[0] == 1, q.shape[2] == 1, k.shape[2] == 1, q.shape[2] == k.shape[2])
    kernel = lowered.derive(
        _kernel, call.score, call.return_lse, q.dtype, q.shape[1] // k.shape[1], (q.shape[3], v.shape[3]),
        device, one_query, layout, fixed, options,
    )  # fmt: skip
    result = _called(kernel, q, k, v, score_mod, block_mask)
    return (result[0], result[1].lse) if call.return_lse else (result, None)


def _kernel(
    lowered: Lowered,
    score: Expr,
    lse: bool,
    dtype: torch.dtype,
    group: int,
    head_dims: tuple[int, int],
    device: torch.device,
    one_query: bool,
    layout: tuple[bool, ...],
    fixed: tuple[tuple[int, ...], ...],
    options: Options | None,
) -> Kernel:
    block_map = lowered.block_map
    mask_text = source_of(lowered.mask, kind="mask_mod", wide=lowered.derive(needs_wide, lowered.mask, device))
    score_text = source_of(score, kind="score_mod", wide=lowered.derive(needs_wide, score, device))
    if options is None:
        listed = block_map if isinstance(block_map, BlockMap) and device.type != "cpu" else None
        options = () if listed is None else tuple(contiguous_lists(listed).items())
    lists = (block_map.batch > 1, block_map.heads > 1)
    blocks = (block_map.grid.q_blocks == 1, block_map.grid.kv_blocks == 1)
    own = _fixed(lowered.mask, lowered.derive(_mask_values), lowered.grid)
    return Kernel(
        mask_text, score_text, options, lowered.attention.scale, lse, dtype, device.type, group, head_dims, lists,
        one_query, layout + blocks, own + fixed,
    )  # fmt: skip


def _block_mask(lowered: Lowered, device: torch.device, one_query: bool) -> Any:
    """torch's BlockMask of the map, with the mask printed over its own values."""
    wide = lowered.derive(needs_wide, lowered.mask, device)
    options = {"kind": "mask_mod", "device": device, "wide": wide, "last_query": one_query}
    mask_mod = function_of(lowered.mask, lowered.derive(_mask_values), **options)
    block_mask = to_flex(lowered.block_map, mask_mod, compact=_dense_bytes(lowered) > DENSE_BYTES)
    if one_query:
        block_mask.seq_lengths = (ONE_QUERY_ROWS, block_mask.seq_lengths[1])
    return block_mask


def _score_mod(call: Call, device: torch.device, one_query: bool) -> tuple[Any, tuple[tuple[int, ...], ...]]:
    """The score_mod, None where scores stay as they are, and the sizes of its tensors that are no lengths."""
    score, lowered = call.score, call.lowered
    if score is var("score"):
        return None, ()
    if not call.bound.tensors.keys() & score.names:
        return lowered.derive(_own_score_mod, score, device, one_query), ()
    tensors = _unexpanded(call.bound.tensors)
    return _printed_score(lowered, score, device, one_query, tensors), _fixed(score, tensors, lowered.grid)


def _own_score_mod(lowered: Lowered, score: Expr, device: torch.device, one_query: bool) -> Any:
    """The score_mod of scores that read no tensor."""
    return _printed_score(lowered, score, device, one_query, {})


def _printed_score(
    lowered: Lowered, score: Expr, device: torch.device, one_query: bool, tensors: Mapping[str, torch.Tensor]
) -> Any:
    wide = lowered.derive(needs_wide, score, device)
    options = {"kind": "score_mod", "device": device, "wide": wide, "last_query": one_query}
    return function_of(score, {**lowered.values, **tensors}, **options)


def _mask_values(lowered: Lowered) -> dict[str, Any]:
    return _unexpanded(lowered.values)


def _unexpanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with copies of tensors whose last dim is expanded: torch's CPU kernels do not compile for those."""
    return {
        name: value.contiguous() if isinstance(value, torch.Tensor) and 0 in value.stride()[-1:] else value
        for name, value in values.items()
    }


def needs_wide(lowered: Lowered, expr: Expr, device: torch.device) -> bool:
    """Are positions computed in 64 bits? On CUDA a kernel's own have 32. On the device no value is read, and the ranges
    of integers are not known.
    """
    if device.type == "cpu":
        return False
    integers = substitute(expr, {"score": const(0.0)})
    return not isinstance(lowered.block_map, BlockMap) or needs_64_bits(integers, lowered.values, lowered.grid)


def _dense_bytes(lowered: Lowered) -> int:
    """Bytes of torch's four index lists; lists made on the device are always torch's."""
    block_map, grid = lowered.block_map, lowered.grid
    if not isinstance(block_map, BlockMap):
        return 0
    return 16 * block_map.batch * block_map.heads * grid.q_blocks * grid.kv_blocks


def _fixed(expr: Expr, values: Any, grid: Grid) -> tuple[tuple[int, ...], ...]:
    """Tell dynamo which dims of the captured tensors are no lengths, and return their sizes.

    torch's CPU kernels do not compile for a captured tensor with a dynamic size that is not one of the lengths. Where
    rows have positions, the pattern's own tensors are as long as the whole sequence; an order may pad the lengths.
    """
    sizes = []
    placed = any(name in values for name in NAMES.values())
    for name, node in inputs_of(expr).items():
        lengths = () if placed and name not in NAMES.values() else ("q_len", "kv_len", "sequence")
        sides = (grid.q_len, grid.kv_len)
        of_call = [dim in lengths and size in sides for dim, size in zip(node.dims, values[name].shape, strict=True)]
        fixed = [axis for axis, dynamic in enumerate(of_call) if not dynamic]
        for axis in fixed:
            torch._dynamo.mark_static(values[name], axis)
        sizes.append(tuple(values[name].shape[axis] for axis in fixed))
    return tuple(sizes)


def _called(kernel: Kernel, *args: Any) -> Any:
    """The result of a code object of this kernel that takes the arguments, or of a new one.

    A code object takes eight recompiles. `dynamic=True` needs few, but which sizes coincide (a batch of 2, 2 blocks)
    nobody can foresee: where all objects are used up, another one begins.
    """
    functions = _functions(kernel)
    limit = torch._dynamo.exc.FailOnRecompileLimitHit
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for function in tuple(functions):  # threads may share the list
            try:
                result = _run(function, args)
            except limit:
                continue
            functions[:] = [function, *(other for other in functions if other is not function)]
            return result
        fresh = _function(kernel, len(functions))
        functions.insert(0, fresh)
        return _run(fresh, args)


def _run(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        return function(*args)
    except torch._dynamo.exc.FailOnRecompileLimitHit:
        raise
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise BackendFailed(f"torch.compile failed on FlexAttention ({type(error).__name__}: {reason})") from error


@lru_cache(maxsize=512)
def _functions(kernel: Kernel) -> list[Callable[..., Any]]:
    """The compiled functions of a kernel, the one that was used last first."""
    return [_function(kernel, 0)]


def _function(kernel: Kernel, number: int) -> Callable[..., Any]:
    """A compiled attention function with a code object of its own."""
    extra = ", return_aux=AuxRequest(lse=True)" if kernel.lse else ""
    source = (
        f"# {abs(hash(kernel)):x} {number}\n"
        "def attend(q, k, v, score_mod, block_mask):\n"
        f"    return flex_attention(q, k, v, score_mod, block_mask, {kernel.scale!r}, {kernel.group > 1},"
        f" kernel_options={dict(kernel.options)!r}{extra})\n"
    )
    function = run_source(source, **vars(torch_flex))["attend"]
    return torch.compile(function, dynamic=True, fullgraph=True)


def _cpp_compiler() -> str | None:
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")


def describe(lowered: Lowered) -> Description:
    """The functions, and what is passed on to CUDA kernels where it is true."""
    assert isinstance(lowered.block_map, BlockMap)
    contiguous = contiguous_lists(lowered.block_map)
    facts = {option: option in contiguous for option in RUNS.values()}
    facts[SMALL] = not needs_64_bits(lowered.mask, lowered.values, lowered.grid)
    options = [option for option in RUNS.values() if facts[option]] + ([] if facts[SMALL] else ["64-bit positions"])
    runs = [f"{side} {_yes(facts[option])}" for side, option in RUNS.items()]
    return Description(
        printed(lowered),
        [f"on CUDA, by the proofs below: {', '.join(options) or 'no kernel options'}"],
        [f"each list of blocks is one run: {', '.join(runs)}", f"{SMALL}: {_yes(facts[SMALL])}"],
        facts,
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


FLEX = Backend("flex", reasons_against, run, describe)
