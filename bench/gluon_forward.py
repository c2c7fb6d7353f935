"""What ptxas makes of a warp-specialised forward kernel in Gluon: one warp loads by TMA, two warpgroups multiply and
take exponentials in turn.

`python bench/gluon_forward.py`; writes bench/results/gluon_forward.md. An experiment: only full runs, no mask, no
scores, compiled for an sm_90 and read, never run, as Gluon has no interpreter. Three ways to order a pass: `plain`
waits for each product; `beside` starts p v of the tile before, then waits for q k alone, so that p v runs beside the
exponentials; `next` waits for p v together with the next q k, as `forward` does it.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import redirect_stdout
from io import StringIO
from tempfile import NamedTemporaryFile

os.environ.pop("TRITON_INTERPRET", None)

import triton
from flexspec.compiler.backends.triton.aot import WARNING
from flexspec.compiler.backends.triton.binary import parsed, product_loops
from harness import report
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

ROWS, BLOCK = gl.constexpr(64), gl.constexpr(128)
"""Queries of a warpgroup, tokens of a block of the map."""
WAYS = ("plain", "beside", "next")
HEAD_DIM = 128


@gluon.jit
def tiles_of(runs, row, BLOCK_N: gl.constexpr):
    tiles = 0
    for run in range(gl.load(runs[0] + row), gl.load(runs[0] + row + 1)):
        tiles += (gl.load(runs[2] + run) - gl.load(runs[1] + run)) * BLOCK // BLOCK_N
    return tiles


@gluon.jit
def load(k, v, tiles, barriers, runs, row, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr):
    """The warp that loads: runs matter only here, and fill no pipeline anew."""
    k_mem, v_mem = tiles
    ready_k, ready_v, free_k, free_v = barriers
    count = 0
    for run in range(gl.load(runs[0] + row), gl.load(runs[0] + row + 1)):
        for start in range(gl.load(runs[1] + run) * BLOCK, gl.load(runs[2] + run) * BLOCK, BLOCK_N):
            slot, phase = count % SLOTS, (count // SLOTS) & 1
            mbarrier.wait(free_k.index(slot), phase ^ 1)
            mbarrier.expect(ready_k.index(slot), k.nbytes_per_cta)
            tma.async_load(k, [start, 0], ready_k.index(slot), k_mem.index(slot))
            mbarrier.wait(free_v.index(slot), phase ^ 1)
            mbarrier.expect(ready_v.index(slot), v.nbytes_per_cta)
            tma.async_load(v, [start, 0], ready_v.index(slot), v_mem.index(slot))
            count += 1


@gluon.jit
def weighted(s, total, most, factor):
    new = gl.maximum(most, gl.max(s, 1) * factor)
    shift = gl.where(new == float("-inf"), 0.0, new)
    p = gl.exp2(s * factor - gl.expand_dims(shift, 1))
    fade = gl.exp2(most - shift)
    return p, fade, total * fade + gl.sum(p, 1), new


@gluon.jit
def scores(q, k_mem, ready_k, zero, tile, SLOTS: gl.constexpr):
    """The product of q and k, under way."""
    mbarrier.wait(ready_k.index(tile % SLOTS), (tile // SLOTS) & 1)
    k = k_mem.index(tile % SLOTS).permute((1, 0))
    return warpgroup_mma(q, k, zero, use_acc=False, is_async=True)


@gluon.jit
def values(p, v_mem, ready_v, acc, tile, SLOTS: gl.constexpr):
    """The product of p and v, under way."""
    mbarrier.wait(ready_v.index(tile % SLOTS), (tile // SLOTS) & 1)
    return warpgroup_mma(p, v_mem.index(tile % SLOTS), acc, is_async=True)


@gluon.jit
def attend(
    q, tiles, barriers, runs, row, out, factor, first_q, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr, D: gl.constexpr,
    WAY: gl.constexpr,
):  # fmt: skip
    """A warpgroup that multiplies."""
    k_mem, v_mem = tiles
    ready_k, ready_v, free_k, free_v = barriers
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    A: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, A, 2)
    OF_ROWS: gl.constexpr = gl.SliceLayout(1, A)
    acc = gl.zeros([ROWS, D], gl.float32, A)
    zero = gl.zeros([ROWS, BLOCK_N], gl.float32, S)
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    most = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
    count = tiles_of(runs, row, BLOCK_N)
    if WAY == "plain":
        for tile in range(0, count):
            s = warpgroup_mma_wait(0, deps=[scores(q, k_mem, ready_k, zero, tile, SLOTS)])
            mbarrier.arrive(free_k.index(tile % SLOTS), count=1)
            p, fade, total, most = weighted(s, total, most, factor)
            acc = acc * gl.expand_dims(gl.convert_layout(fade, OF_ROWS), 1)
            p = gl.convert_layout(p.to(gl.bfloat16), P)
            acc = warpgroup_mma_wait(0, deps=[values(p, v_mem, ready_v, acc, tile, SLOTS)])
            mbarrier.arrive(free_v.index(tile % SLOTS), count=1)
    else:
        s = warpgroup_mma_wait(0, deps=[scores(q, k_mem, ready_k, zero, 0, SLOTS)])
        mbarrier.arrive(free_k.index(0), count=1)
        p, fade, total, most = weighted(s, total, most, factor)
        p = gl.convert_layout(p.to(gl.bfloat16), P)
        sums = warpgroup_mma_init(acc)
        for tile in range(1, count):
            s_now = scores(q, k_mem, ready_k, zero, tile, SLOTS)
            if WAY == "beside":
                acc = acc * gl.expand_dims(gl.convert_layout(fade, OF_ROWS), 1)
                sums = values(p, v_mem, ready_v, acc, tile - 1, SLOTS)
                s = warpgroup_mma_wait(1, deps=[s_now])
            else:
                s, acc = warpgroup_mma_wait(0, deps=[s_now, sums])
                if tile > 1:
                    mbarrier.arrive(free_v.index((tile - 2) % SLOTS), count=1)
                acc = acc * gl.expand_dims(gl.convert_layout(fade, OF_ROWS), 1)
                sums = values(p, v_mem, ready_v, acc, tile - 1, SLOTS)
            mbarrier.arrive(free_k.index(tile % SLOTS), count=1)
            weights, fade, total, most = weighted(s, total, most, factor)
            p = gl.convert_layout(weights.to(gl.bfloat16), P)
            if WAY == "beside":
                acc, p = warpgroup_mma_wait(0, deps=[sums, p])
                mbarrier.arrive(free_v.index((tile - 1) % SLOTS), count=1)
        if WAY == "next":
            acc = warpgroup_mma_wait(0, deps=[sums])
        acc = acc * gl.expand_dims(gl.convert_layout(fade, OF_ROWS), 1)
        acc = warpgroup_mma_wait(0, deps=[values(p, v_mem, ready_v, acc, count - 1, SLOTS)])
    acc = acc / gl.expand_dims(gl.convert_layout(total, OF_ROWS), 1)
    at = first_q + gl.expand_dims(gl.arange(0, ROWS, OF_ROWS), 1)
    gl.store(out + at * D + gl.expand_dims(gl.arange(0, D, gl.SliceLayout(0, A)), 0), acc.to(gl.bfloat16))


@gluon.jit
def forward(
    q, k, v, out, first, run_start, run_stop, factor, BLOCK_N: gl.constexpr, SLOTS: gl.constexpr, D: gl.constexpr,
    WAY: gl.constexpr,
):  # fmt: skip
    """128 queries of one head. q, k, v: descriptors of tiles; the rest as in the kernels of the project."""
    row = gl.program_id(0)
    q_mem = gl.allocate_shared_memory(gl.bfloat16, [2 * ROWS, D], q.layout)
    k_mem = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, BLOCK_N, D], k.layout)
    v_mem = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, BLOCK_N, D], v.layout)
    there = mbarrier.allocate_mbarrier()
    mbarrier.init(there, count=1)
    ready_k, ready_v = mbarrier.allocate_mbarrier(batch=SLOTS), mbarrier.allocate_mbarrier(batch=SLOTS)
    free_k, free_v = mbarrier.allocate_mbarrier(batch=SLOTS), mbarrier.allocate_mbarrier(batch=SLOTS)
    for slot in gl.static_range(SLOTS):
        mbarrier.init(ready_k.index(slot), count=1)
        mbarrier.init(ready_v.index(slot), count=1)
        mbarrier.init(free_k.index(slot), count=2)
        mbarrier.init(free_v.index(slot), count=2)
    mbarrier.expect(there, q.nbytes_per_cta)
    tma.async_load(q, [row * 2 * ROWS, 0], there, q_mem)
    mbarrier.wait(there, 0)
    first_q, second = row * 2 * ROWS, row * 2 * ROWS + ROWS
    tiles, barriers = (k_mem, v_mem), (ready_k, ready_v, free_k, free_v)
    runs = (first, run_start, run_stop)
    gl.warp_specialize(
        [
            (attend, (q_mem.slice(0, ROWS), tiles, barriers, runs, row, out, factor, first_q, BLOCK_N, SLOTS, D, WAY)),
            (
                attend,
                (q_mem.slice(ROWS, ROWS), tiles, barriers, runs, row, out, factor, second, BLOCK_N, SLOTS, D, WAY),
            ),
            (load, (k, v, tiles, barriers, runs, row, BLOCK_N, SLOTS)),
        ],
        [4, 1],
        [240, 24],
    )


def compiled(way: str, block_n: int, slots: int) -> tuple[list[str], dict[str, object]]:
    """A row of the table, and its facts."""
    layout = gl.NVMMASharedLayout(128, 16, 2)
    tile = f"tensordesc<bf16[{{}},{HEAD_DIM}],{layout!r}>"
    types = {"q": tile.format(128), "k": tile.format(block_n), "v": tile.format(block_n)}
    types |= {"out": "*bf16", "first": "*i32", "run_start": "*i32", "run_stop": "*i32", "factor": "fp32"}
    constants = {"BLOCK_N": block_n, "SLOTS": slots, "D": HEAD_DIM, "WAY": way}
    signature = {name: types.get(name, "constexpr") for name in forward.arg_names}
    log = StringIO()
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
        source = GluonASTSource(forward, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    with NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(made.asm["cubin"])
        binary.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        listing = subprocess.run([tool, "-sass", binary.name], capture_output=True, text=True, check=True).stdout
    loop = product_loops(parsed(listing), 4)[0]
    warnings = sorted({code for code, _ in WARNING.findall(log.getvalue())})
    facts = {
        "per_block": loop.instructions * 4 * 128 * 128 // (64 * block_n),
        "overlap": loop.overlap,
        "local": loop.classes.get("local", 0),
        "warnings": warnings,
    }
    shown = [f"{facts['per_block']:,}", f"{loop.overlap:.0%}", str(facts["local"]), ", ".join(warnings)]
    return [way, f"128x{block_n}", str(slots), *shown], facts


def main() -> None:
    rows, data = [], {}
    for way in WAYS:
        for block_n, slots in ((128, 2), (64, 4)):
            row, data[f"{way} {block_n}"] = compiled(way, block_n, slots)
            rows.append(row)
    command = f"python bench/gluon_forward.py, with Triton {triton.__version__}"
    columns = ["way", "tile", "slots", "instructions per 128x128", "exponentials beside products", "local", "ptxas"]
    report("gluon_forward", command, columns, rows, data)


if __name__ == "__main__":
    main()
