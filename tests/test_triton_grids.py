"""Grids of the kernels: every program has a tile, batch and head of its own, and none stops at 65,535."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from flexspec.compiler.backends.triton.aot import run_all
from flexspec.compiler.backends.triton.decoding import MOST_QUERIES, run_decode
from flexspec.compiler.backends.triton.forward import program
from flexspec.compiler.backends.triton.launch import launch_of
from test_triton import DEVICE

import flexspec as fs

MOST_OF_OTHER_AXES = 65_535
MOST_OF_THE_FIRST_AXIS = 2**31 - 1


@triton.jit
def write_ids(ids, tiles, heads):
    tile, b, h = program(tiles, heads)
    entry = ids + tl.program_id(0) * 3
    tl.store(entry, tile)
    tl.store(entry + 1, b)
    tl.store(entry + 2, h)


@pytest.mark.parametrize(("batch", "heads", "tiles"), [(3, 4, 5), (2, 1, 3), (1, 6, 1), (7, 1, 1)])
def test_tiles_of_a_batch_and_head_follow_one_another(batch, heads, tiles):
    ids = torch.full((batch * heads * tiles, 3), -1, dtype=torch.int32, device=DEVICE)
    write_ids[(len(ids),)](ids, tiles, heads)
    b, h, tile = np.indices((batch, heads, tiles)).reshape(3, -1)
    assert ids.tolist() == np.stack([tile, b, h], 1).tolist()


def grids_of(batch, heads, kv_heads, q_len, kv_len):
    """The grid of each kernel of a call, by its name; nothing runs."""
    shapes = (heads, q_len, 16), (kv_heads, kv_len, 16), (kv_heads, kv_len, 16)
    q, k, v = (torch.empty((batch, *shape), device="meta") for shape in shapes)
    call = fs.compile(fs.causal(kv_len - q_len), backend="triton", block_size=128).call_of(q, k, v, True, "logical", {})
    grids = {}

    def start(kernel, grid, config, *args, **constants):
        grids[kernel.fn.__name__] = grid

    launch = replace(launch_of(call, arch="sm_90"), start=start)
    if q_len <= MOST_QUERIES:
        run_decode(launch, call)
    else:
        run_all(launch, q, k, v, backward=True)
    return grids


def test_more_batches_and_heads_than_a_second_axis_has():
    """40 * 2048 = 81,920 of them, each with 3 blocks of 128, and the sums with 10 of 32."""
    grids = grids_of(40, 2048, 512, 300, 300)
    assert grids.keys() == {"forward", "deltas", "backward_q", "backward_kv"}
    assert all(len(grid) == 1 and grid[0] <= MOST_OF_THE_FIRST_AXIS for grid in grids.values())
    assert grids["deltas"] == (10 * 81_920,)
    assert grids["forward"][0] % (3 * 81_920) == grids["backward_q"][0] % (3 * 81_920) == 0
    assert grids["backward_kv"][0] % (3 * 40 * 512) == 0


@pytest.mark.parametrize(("batch", "heads"), [(40, 2048), (70_000, 1)])
def test_decoding_more_of_them_than_a_second_axis_has(batch, heads):
    grids = grids_of(batch, heads, heads, 1, 1000)
    assert grids.keys() == {"decode", "merge"} and grids["merge"][0] == batch * heads
    assert all(count <= MOST_OF_OTHER_AXES for grid in grids.values() for count in grid[1:])
