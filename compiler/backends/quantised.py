"""q, k and v in 8 bits: the numbers that a kernel multiplies, and the same numbers for the reference to judge it by.

After SageAttention (Zhang et al., arXiv 2410.02367) and SageAttention2 (arXiv 2411.10958). A product is
`q . k = (q / a) . ((k - mean) / c) * (a * c) + q . mean`, `mean` over the tokens of a (batch, key head): an offset that
all keys share leaves the 8 bits to what tells them apart. The last term is the same for all keys of a query; it is kept
as one float, for scores that a function changes, for a sink and for the lse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

PRECISIONS = ("int8", "fp8")
KEYS = 64
"""Of a block with one scale."""
LIFT = {"int8": 15, "fp8": 8}
"""Weights, at most 1, are rounded after they are multiplied by 2**LIFT, so that small ones stay normal numbers."""
INT8, E4M3 = 127.0, 448.0
"""The largest numbers."""
EXPONENT = 0x7F800000
"""Bits of a float32 that alone are the power of two below it."""
ALIGNED = 16
"""Channels that there are zeros up to a multiple of, so that loads are 16 bytes wide."""


class Quantised(NamedTuple):
    """What is multiplied, and by what. Tokens and channels are zeros up to whole blocks.

    q, k: int8 or e4m3 [batch, heads or kv_heads, tokens, channels]. v: float16, or e4m3 with the tokens of a channel
    next to each other in memory. Float32: q_scale [batch, heads, tokens]; k_scale [batch, kv_heads, tokens / KEYS];
    v_scale [batch, kv_heads, v_head_dim]; offset [batch, heads, tokens], the product of a query and the mean of keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_scale: Tensor
    k_scale: Tensor
    v_scale: Tensor
    offset: Tensor


def quantised(
    q: Tensor, k: Tensor, v: Tensor, precision: str, tokens: tuple[int, int] = (0, 0), centred: bool = True
) -> Quantised:
    """In plain torch, on any device. Queries have a scale each, which costs a kernel nothing; keys have one in blocks.

    q: [batch, heads, q_len, head_dim]; k, v: [batch, kv_heads, kv_len, ...]; finite. tokens: that there are at least.
    centred: is the mean taken out of k? All steps are passes over memory: some reads and writes of q, k and v.
    """
    offset = torch.zeros(q.shape[:3], dtype=torch.float32, device=q.device)
    mean, v_scale = mean_of(k), scale_of_values(v, precision)
    q, k, v = (x.float().contiguous() for x in (q, k, v))
    if centred:
        k = k - mean
        offset = (q.unflatten(1, (k.shape[1], -1)) * mean[:, :, None]).sum(-1).flatten(1, 2)  # no matter if TF32 is on
    q, k = widened(q, tokens[0]), widened(k, tokens[1], KEYS)
    q8, q_scale = in_blocks(q, 1, precision)
    k8, k_scale = in_blocks(k, KEYS, precision)
    v8 = _by_channel(widened(v / v_scale[:, :, None], k.shape[2]), precision)
    offset = pad(offset, (0, q.shape[2] - offset.shape[2]))
    return Quantised(q8, k8, v8, q_scale, k_scale, v_scale, offset)


def mean_of(k: Tensor) -> Tensor:
    """Over the tokens: float32 [batch, kv_heads, 1, head_dim]; of float64 as of its float32."""
    return (k.float() if k.dtype == torch.float64 else k).mean(2, keepdim=True, dtype=torch.float32)


def scale_of_values(v: Tensor, precision: str) -> Tensor:
    """Of each channel, float32 [batch, kv_heads, v_head_dim]: for float16 a power of two, which rounds nothing."""
    most = torch.linalg.vector_norm(v, torch.inf, 2).float()  # in one pass
    return _or_one((most.view(torch.int32) & EXPONENT).view(torch.float32) if precision == "int8" else most / E4M3)


def widened(x: Tensor, tokens: int, block: int = 1) -> Tensor:
    """With zeros to so many tokens at least, in whole blocks, and to `ALIGNED` channels."""
    tokens = -(-max(tokens, x.shape[2]) // block) * block
    return pad(x, (0, -x.shape[3] % ALIGNED, 0, tokens - x.shape[2]))


def in_blocks(x: Tensor, block: int, precision: str) -> tuple[Tensor, Tensor]:
    """Numbers, rounded to nearest, and the scale of each block of tokens."""
    blocks = x.unflatten(2, (-1, block))
    most = INT8 if precision == "int8" else E4M3
    scale = _or_one(blocks.abs().amax((3, 4)) / most)
    numbers = blocks / scale[..., None, None]
    kind = torch.int8 if precision == "int8" else torch.float8_e4m3fn
    return (numbers.round() if precision == "int8" else numbers).to(kind).flatten(2, 3), scale


def _by_channel(v: Tensor, precision: str) -> Tensor:
    """Values over their scales, as they lie in memory."""
    if precision == "int8":
        return v.half()
    return v.transpose(2, 3).to(torch.float8_e4m3fn).contiguous().transpose(2, 3)


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1.0, scale)


def restored(each: Quantised, q_len: int, kv_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in float64 as they were rounded, for products without scales: the offset is one more channel of q,
    that of k is 1.
    """
    q = torch.cat([each.q.double() * each.q_scale.double()[..., None], each.offset.double()[..., None]], -1)
    k = each.k.double() * each.k_scale.double().repeat_interleave(KEYS, 2)[..., None]
    v = each.v.double()[..., : each.v_scale.shape[2]] * each.v_scale.double()[:, :, None]
    return q[:, :, :q_len], torch.cat([k, torch.ones_like(k[..., :1])], -1)[:, :, :kv_len], v[:, :, :kv_len]


def rounded(weights: Tensor, precision: str) -> Tensor:
    """Weights, from 0 to 1, as the second product takes them: float16, or e4m3."""
    kind = torch.float16 if precision == "int8" else torch.float8_e4m3fn
    lift = 2.0 ** LIFT[precision]
    return (weights * lift).to(kind).double() / lift
