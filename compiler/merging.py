"""Parts of an answer, each attention over keys of its own, as one answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexspec.errors import FlexSpecError
from flexspec.user_line import user_caret

Part = tuple[Tensor, Tensor]


def merge(*parts: Part) -> Part:
    """Attention over all keys, from attention over parts of them: exact, in any order, with gradients.

    parts: (out, lse) of disjoint keys, as `attend(..., return_lse=True)` gives them: out [..., q_len, v_head_dim], lse
        [..., q_len] in nats, -inf where a query keeps nothing.

    Returns (out, lse) of the same shapes: out in the parts' dtype, lse in float32, or in float64 where the parts have
    it. A query that keeps nothing in any part has output 0 and lse -inf. A result is a part itself, so a loop merges as
    it goes. Gradients go through outputs and lses.

    Raises FS040 (no part, something else than pairs of floating tensors, parts that do not fit each other).

    >>> import flexspec as fs, torch
    >>> q, k, v = torch.randn(3, 1, 2, 8, 4, dtype=torch.float64)
    >>> attend = fs.compile(fs.mask(lambda kv: kv >= 0), backend="reference")
    >>> parts = [attend(q, k[:, :, keys], v[:, :, keys], return_lse=True) for keys in (slice(3), slice(3, 8))]
    >>> torch.allclose(fs.merge(*parts)[0], attend(q, k, v))
    True
    """
    _check(parts)
    outs, lses = zip(*parts, strict=True)
    work = torch.promote_types(torch.promote_types(outs[0].dtype, lses[0].dtype), torch.float32)
    lse = torch.stack([each.to(work) for each in lses])
    top = lse.detach().amax(0)
    top = torch.where(top > -torch.inf, top, 0.0)
    shares = torch.exp(lse - top)  # 0 for a part in which a query keeps nothing, and so is its gradient
    total = shares.sum(0)
    some = total > 0
    total = torch.where(some, total, 1.0)
    # a part that keeps nothing counts as 0 whatever others left in its output
    kept = [
        torch.where((each > -torch.inf)[..., None], out.to(work), 0.0) for out, each in zip(outs, lses, strict=True)
    ]
    out = torch.zeros_like(kept[0])
    for rows, share in zip(kept, shares, strict=True):
        out = out + rows * (share / total)[..., None]
    return out.to(outs[0].dtype), torch.where(some, torch.log(total) + top, -torch.inf)


def _check(parts: Any) -> None:
    if not parts:
        raise _misfit("merge takes parts, and there is none")
    for number, part in enumerate(parts):
        if not (isinstance(part, (tuple, list)) and len(part) == 2 and all(map(_floating, part))):
            raise _misfit(f"part {number} is {_seen(part)}")
        out, lse = part
        if out.shape[:-1] != lse.shape or out.dim() < 2:
            raise _misfit(f"part {number} has out {list(out.shape)} and lse {list(lse.shape)}, which is no row of each")
    first, *others = parts
    for number, part in enumerate(others, 1):
        for name, own, other in zip(("out", "lse"), first, part, strict=True):
            if (own.shape, own.dtype, own.device) != (other.shape, other.dtype, other.device):
                message = f"{name} of part 0 is {_described(own)}, of part {number} {_described(other)}"
                raise _misfit(message)


def _floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _seen(part: object) -> str:
    kinds = ", ".join(_described(x) for x in part) if isinstance(part, (tuple, list)) else _described(part)
    return f"({kinds})" if isinstance(part, (tuple, list)) else kinds


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} on {value.device}"


def _misfit(message: str) -> FlexSpecError:
    fix = "give (out, lse) of each part, as attend(..., return_lse=True) returns them"
    return FlexSpecError("FS040", message, fix=fix, where=user_caret())
