"""Decoding on the host: the kept tiles of keys cut into equal parts, and the launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ...blocks.block_map import BlockMap
from ...blocks.flex_lists import by_kind
from ...blocks.runs import counting
from ...evaluation.points import Array
from ..base import Call
from .able import WITH_E4M3
from .configs import Config, padded
from .launch import Launch, described, near
from .tuning import launched

MOST_QUERIES = 16
"""Longer calls run the forward kernel."""
LEAST_BLOCKS = 4
"""Blocks of keys from which on there is something to share out."""
MOST_ROWS = 64
"""Queries times heads in a tile."""
PIECES = 16
TILES_PER_PART = 2
PARTS_PER_PROCESSOR = 2


class Work(NamedTuple):
    """Who does what. A row is one batch and `packed` query heads; a piece is what one part holds of one row.

    int32 on the device: first_of_part [parts + 1] and first_of_row [rows + 1], their first pieces; row [pieces]; full,
    partial: `first` [pieces + 1], `start` and `stop` [runs of the kind] in tiles of keys.
    """

    packed: int
    parts: int
    rows: int
    pieces: int
    first_of_part: torch.Tensor
    first_of_row: torch.Tensor
    row: torch.Tensor
    full: tuple[torch.Tensor, ...]
    partial: tuple[torch.Tensor, ...]


def decodes(call: Call) -> bool:
    """Is this a call for the decode kernels: few queries, in one row of blocks, and more than a few keys?"""
    grid = call.lowered.grid
    long = call.page_table is not None or grid.kv_blocks >= LEAST_BLOCKS
    return grid.q_len <= MOST_QUERIES and grid.q_blocks == 1 and long and not call.wants_gradients


def reads(arch: str, call: Call) -> bool:
    """Can the decode kernels for a GPU read these keys and values? In the interpreter, whose name is empty, any."""
    return call.k.dtype != torch.float8_e4m3fn or arch in ("", *WITH_E4M3)


def run_decode(launch: Launch, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Output in q's dtype, and lse float32 [batch, heads, q_len]; a sink logit is a column of the merged row."""
    from .decode import decode

    q, k, v, table = call.q, call.k, call.v, call.page_table
    scales = [] if call.stored is None else [x.scale for x in call.stored]
    if table is not None:
        k, v, *scales = (x.transpose(1, 2) for x in (k, v, *scales))
        table = table if table.stride(1) == 1 else table.contiguous()
    q, k, v = near(q, k, v)
    stored = None if call.stored is None else (*map(described, scales), _mean(call.stored[0].mean, q))
    result: list[tuple[torch.Tensor, torch.Tensor]] = []

    def start(launch: Launch, chosen: Config) -> None:
        result[:] = [_decode(launch, q, k, v, stored, table, chosen)]

    launched(start, decode, launch, q, v, launch.functions[:2])
    return result[0]


def _mean(mean: torch.Tensor | None, q: torch.Tensor) -> tuple[Any, ...] | None:
    """As `decode` takes it."""
    return None if mean is None else (*described(mean.expand(q.shape[0], -1, -1, -1)), q.shape[3])


def _decode(
    launch: Launch, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, stored: Any, table: Any, chosen: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both kernels: how many pieces there are to merge follows from the tiles."""
    from .decode import decode

    work = work_of(launch, q.shape[0], chosen.block_n, parts_on(q.device))
    block_m = padded(work.packed * q.shape[2])
    sizes = (*launch.sizes("q")[:4], work.packed)
    shapes = [(work.pieces, block_m, v.shape[3]), (work.pieces, block_m), (work.pieces, block_m)]
    pieces = tuple(torch.empty(shape, dtype=torch.float32, device=q.device) for shape in shapes)
    launch.start(
        decode,
        (work.parts,),
        chosen._replace(block_m=block_m),  # at most 64 rows: more than four warps would do products twice
        described(q),
        described(k),
        described(v),
        stored,
        None if table is None else (table, table.stride(0)),
        pieces,
        (work.first_of_part, work.row),
        work.full,
        work.partial,
        sizes,
        launch.scale,
        launch.mask_values,
        launch.score_values,
        mask=launch.functions.mask,
        score=launch.functions.score,
        PAGE=0 if table is None else k.shape[2],
        BLOCK_M=block_m,
        BLOCK_N=chosen.block_n,
        HEAD_DIM=q.shape[3],
        V_DIM=v.shape[3],
        HEAD_PAD=padded(q.shape[3]),
        V_PAD=padded(v.shape[3]),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        **launch.options,
    )
    return _merged(launch, work, pieces, sizes, q)


def _merged(
    launch: Launch, work: Work, pieces: tuple[torch.Tensor, ...], sizes: tuple[int, ...], q: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and lse from what the parts wrote."""
    from .decode import merge

    v_dim = pieces[0].shape[2]
    out = torch.empty((*q.shape[:3], v_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    launch.start(
        merge,
        (work.rows, work.packed * q.shape[2]),
        Config(1, PIECES, 4, 1),
        pieces,
        work.first_of_row,
        described(out),
        lse,
        launch.sink,
        sizes,
        BLOCK_M=pieces[0].shape[1],
        V_DIM=v_dim,
        V_PAD=padded(v_dim),
        PIECES=PIECES,
        enable_fp_fusion=True,
    )
    return out, lse


def parts_on(device: torch.device) -> int:
    """Programs that fill the device."""
    if device.type != "cuda":
        return 4
    return PARTS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def work_of(launch: Launch, batch: int, block_n: int, parts: int) -> Work:
    """The work of a call, kept with its block map: the layers of a model share it."""
    return launch.block_map.derive(_work, batch, launch.heads, launch.group, block_n, parts)


def _work(block_map: BlockMap, batch: int, heads: int, group: int, block_n: int, parts: int) -> Work:
    index = np.broadcast_to(block_map.index, (batch, heads))
    packed = heads_in_a_row(index, group, block_map.q_len)
    return _shared_out(block_map, index[:, ::packed].reshape(-1), packed, block_n, parts)


def heads_in_a_row(index: Array, group: int, q_len: int) -> int:
    """Query heads of one key head that one tile can hold: they have one map. index: which map, [batch, heads]."""
    fitting = [count for count in range(group, 1, -1) if group % count == 0 and count * q_len <= MOST_ROWS]
    for count in fitting:
        each = index.reshape(len(index), -1, count)
        if (each == each[..., :1]).all():
            return count
    return 1


def _shared_out(block_map: BlockMap, which: Array, packed: int, block_n: int, parts: int) -> Work:
    """Cut the list of all kept tiles into equal parts. which: the map of each row."""
    start, stop, full, row = _runs_of(block_map, which, block_n)
    ends = np.cumsum(stop - start)
    tiles = int(ends[-1]) if len(ends) else 0
    parts = max(1, min(parts, tiles // TILES_PER_PART))
    bounds = np.arange(parts + 1) * tiles // parts
    edges = np.union1d(ends, bounds)  # of the runs once they are cut
    run = np.searchsorted(ends, edges[:-1], side="right")
    part = np.searchsorted(bounds, edges[:-1], side="right") - 1
    last = stop[run] - (ends[run] - edges[1:])
    first, row, full = last - np.diff(edges), row[run], full[run]
    fresh = np.append(True, (row[1:] != row[:-1]) | (part[1:] != part[:-1]))[: len(row)]
    piece, pieces = np.cumsum(fresh) - 1, int(fresh.sum())

    def firsts(ascending: Array, count: int) -> Array:
        return np.searchsorted(ascending, np.arange(count + 1))

    arrays = [firsts(part[fresh], parts), firsts(row[fresh], len(which)), row[fresh]]
    for kind in (full, ~full):
        arrays += [firsts(piece[kind], pieces), first[kind], last[kind]]
    sent = _sent(arrays, block_map.device)
    of_part, of_row, rows, *runs = sent
    return Work(packed, parts, len(which), pieces, of_part, of_row, rows, (*runs[:3],), (*runs[3:],))


def _runs_of(block_map: BlockMap, which: Array, block_n: int) -> tuple[Array, Array, Array, Array]:
    """Start and stop in tiles, "is it full" and row of the runs of all rows; in a row the full ones come first."""
    grid = replace(block_map.grid, q_len=block_map.block_q)  # a query that does not exist makes no block partial
    each = [by_kind(runs, grid)[::-1] for runs in block_map.maps]
    counts = np.array([[len(runs.row) for runs in pair] for pair in each])
    start, stop = (np.concatenate([getattr(x, end) for pair in each for x in pair]) for end in ("start", "stop"))
    full = np.repeat(np.tile([True, False], len(each)), counts.reshape(-1))
    scale, tiles = grid.block_kv // block_n, -(-grid.kv_len // block_n)
    size = counts.sum(1)
    at = counting((np.cumsum(size) - size)[which], size[which])
    row = np.repeat(np.arange(len(which)), size[which])
    return start[at] * scale, np.minimum(stop[at] * scale, tiles), full[at], row


def _sent(arrays: list[Array], device: torch.device) -> list[torch.Tensor]:
    """int32 arrays in one transfer, each of them aligned to 16 bytes and with at least one entry."""
    room = [len(array) // 4 * 4 + 4 for array in arrays]
    whole = np.zeros(sum(room), np.int32)
    for array, end, size in zip(arrays, np.cumsum(room), room, strict=True):
        whole[end - size : end - size + len(array)] = array
    return list(torch.from_numpy(whole).to(device).split(room))
