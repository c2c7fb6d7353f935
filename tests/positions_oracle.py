"""Attention over a whole sequence of which some keys are dropped, in dense float64; imports nothing of flexspec."""

import torch


def heads_of(positions, batch, heads):
    """Positions [batch | 1, length] or [batch | 1, few, length] for every head: [batch, heads, length]."""
    each = positions if positions.dim() == 3 else positions[:, None]
    return each.repeat_interleave(heads // each.shape[1], 1).expand(batch, heads, -1)


def gathered(whole, positions):
    """Rows [batch, heads, length, dim] of a whole sequence at positions [batch, heads, length]; else garbage."""
    rows = torch.take_along_dim(whole, positions.clamp(min=0)[..., None], 2)
    return rows + 7.5 * (positions < 0)[..., None]


def attention(q, k, v, q_positions, kv_positions, kept, bias=None):
    """Output [batch, heads, rows, dim] of queries at some positions against the keys at others.

    q, k, v: [batch, heads, length, dim] of the whole sequence. positions: [batch, heads, rows], negative: no row.
    kept: bool [batch | 1, heads | 1, length, length], the mask on the whole sequence; bias: added to the scores there.
    """
    length = k.shape[2]
    there = (torch.arange(length) == kv_positions[..., None]).any(-2)[:, :, None]
    row = q_positions.clamp(min=0)[..., None]
    shape = (*q.shape[:2], length, length)
    keeps = torch.take_along_dim(kept.expand(shape), row, 2) & there & (q_positions >= 0)[..., None]
    scores = torch.take_along_dim(q.double(), row, 2) @ k.double().mT / q.shape[3] ** 0.5
    if bias is not None:
        scores = scores + torch.take_along_dim(bias.expand(shape), row, 2)
    weights = torch.where(keeps, scores, -torch.inf)
    top = weights.amax(-1, keepdim=True).clamp(min=-1e30)
    weights = torch.exp(weights - top)
    return weights @ v.double() / weights.sum(-1, keepdim=True).clamp(min=1e-300)
