"""NVIDIA's machine code read: the innermost loops of a kernel that multiply tiles, and what one pass of them does.

A listing is what `cuobjdump -sass` prints. Products are counted as floating-point operations of one pass of all warps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
"""Address, predicate, opcode and operands."""
PREDICATE = re.compile(r"!?U?P\d")
JUMPS = ("BRA", "BRX", "JMP", "EXIT", "RET")
CLASSES: dict[str, tuple[str, ...]] = {
    "tensor core": ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "IMMA", "OMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA"),
    "exp2": ("MUFU.EX2",),
    "other functions": ("MUFU",),
    "float": ("FFMA", "FMUL", "FADD"),
    "maximum": ("FMNMX",),
    "conversion": ("F2F", "I2F", "F2I", "HADD", "HMUL", "HFMA", "I2I"),
    "comparison": ("FSETP", "FSEL", "FSET", "ISETP", "UISETP", "SEL", "USEL", "PLOP3", "UPLOP3", "VOTE", "P2R", "R2P"),
    "shuffle": ("SHFL", "REDUX"),
    "local": ("LDL", "STL"),
    "asynchronous load": ("LDGSTS", "UTMALDG", "UBLKCP"),
    "synchronisation": (
        ("BAR", "DEPBAR", "LDGDEPBAR", "WARPGROUP", "WARPSYNC", "SYNCS", "UTCBAR", "MEMBAR", "FENCE", "ARRIVES")
        + ("BSSY", "BSYNC", "ELECT", "NANOSLEEP", "CCTL", "ERRBAR")
    ),
    "global": ("LDG", "STG", "RED", "ATOM"),
    "shared": ("LDSM", "STSM", "LDS", "STS"),
    "tensor memory": ("LDTM", "STTM", "UTCCP"),
    "move": ("MOV", "UMOV", "R2UR", "S2R", "S2UR", "CS2R", "LDC", "ULDC"),
    "branch": (*JUMPS, "CALL"),
    "integer": (
        ("IMAD", "UIMAD", "IADD", "UIADD", "VIADD", "UVIADD", "LEA", "ULEA", "SHF", "USHF", "LOP", "ULOP", "IABS")
        + ("IMNMX", "VIMNMX", "UIMNMX", "PRMT", "UPRMT", "SGXT", "USGXT", "BMSK", "UBMSK", "POPC", "FLO", "IDP")
    ),
}
"""Kinds of instructions by how their opcodes begin; the first that fits. What fits none is "other"."""
INPUTS = {"HGMMA": 2, "QGMMA": 1, "IGMMA": 1}
"""Bytes of an element that the tensor core takes from shared memory."""
NARROW = ("IGMMA", "QGMMA", "IMMA", "QMMA", "UTCIMMA", "UTCQMMA")
"""Products of 8-bit numbers, of which the tensor core does twice as many as of 16-bit ones."""
IDESC = re.compile(r"idesc\[(UR\d+)\]")


class Instruction(NamedTuple):
    """One line of a listing. predicate: without its @, empty where there is none."""

    address: int
    predicate: str
    opcode: str
    operands: str


class Product(NamedTuple):
    """One instruction of the tensor core, as all that take part in it do it: `m` x `n` x `k`.

    warps: that issue it together (a warpgroup has four). a_shared: is the left operand read from shared memory? bytes:
    read from shared memory.
    """

    m: int
    n: int
    k: int
    warps: int
    a_shared: bool
    bytes: int


@dataclass(frozen=True)
class LoopCounts:
    """One pass of an innermost loop, instructions of one warp by class.

    flops: of all warps, products only. wait_depth: how many groups of asynchronous loads may be under way while it goes
    on, at its strictest wait; None without such loads. overlap: the share of the exponentials that are taken while
    products are under way, None where products make a warp wait for them. least_n: of a product that shared memory
    feeds, None without; least_n_a_shared: of those that also read their left operand there. shared_bytes: that all
    warps move to and from shared memory, the tensor core's reads too. narrow_flops: those of `flops` that are products
    of 8-bit numbers.
    """

    instructions: int
    classes: dict[str, int]
    flops: int
    wait_depth: int | None
    overlap: float | None
    least_n: int | None
    least_n_a_shared: int | None
    shared_bytes: int
    narrow_flops: int = 0


def parsed(listing: str) -> list[Instruction]:
    """The instructions of a kernel in order of address."""
    lines = (LINE.match(line) for line in listing.splitlines())
    return [Instruction(int(m[1], 16), m[2] or "", m[3], m[4].strip()) for m in lines if m]


def class_of(opcode: str) -> str:
    """The row of `CLASSES` of an opcode."""
    return next((name for name, starts in CLASSES.items() if opcode.startswith(starts)), "other")


def product_loops(code: Sequence[Instruction], warps: int, buffers: int = 1) -> list[LoopCounts]:
    """The innermost loops that multiply tiles, those with fewest instructions first. warps: of the kernel. buffers: for
    each tile that comes by a descriptor.

    Where no tensor core is used they are those with fused multiply-adds, half of the most that one has or more.
    """
    after = _successors(code)
    multiplies = {i for i, each in enumerate(code) if class_of(each.opcode) == "tensor core"}
    if multiplies:
        loops = _innermost(set(range(len(code))), after, multiplies)
    else:
        multiplies = {i for i, each in enumerate(code) if each.opcode.startswith("FFMA")}
        loops = _innermost(set(range(len(code))), after, multiplies)
        most = max((len(loop & multiplies) for loop in loops), default=0)
        loops = [loop for loop in loops if 2 * len(loop & multiplies) >= most]
    loops.sort(key=lambda loop: (len(loop), min(loop)))
    return [_counts(code, sorted(loop), warps, buffers) for loop in loops]


def _successors(code: Sequence[Instruction]) -> list[list[int]]:
    """Where control may go from each instruction. A call goes on both in its target and after it."""
    places = {each.address: i for i, each in enumerate(code)}
    after: list[list[int]] = []
    for i, each in enumerate(code):
        jumps = each.opcode.startswith(JUMPS)
        goes_on = not jumps or bool(each.predicate) or PREDICATE.search(each.operands) is not None
        ways = [i + 1] if goes_on and i + 1 < len(code) else []
        target = re.search(r"\b0x([0-9a-f]+)\s*$", each.operands)
        if target and (jumps or each.opcode.startswith("CALL")) and int(target[1], 16) in places:
            ways.append(places[int(target[1], 16)])
        after.append(ways)
    return after


def _innermost(within: set[int], after: Sequence[Sequence[int]], wanted: set[int]) -> list[set[int]]:
    """Cycles that hold a wanted instruction, and no smaller such cycle.

    A loop without its first instruction is a cycle no more, but the loops in it still are.
    """
    loops = []
    for cycle in _cycles(within, after):
        if cycle & wanted:
            entries = {way for i in within - cycle for way in after[i]} & cycle
            inner = _innermost(cycle - {min(entries or cycle)}, after, wanted)
            loops += inner or [cycle]
    return loops


def _cycles(within: set[int], after: Sequence[Sequence[int]]) -> list[set[int]]:
    """Strongly connected parts of a graph that have a cycle (Kosaraju: in order of leaving, then against the ways)."""
    seen: set[int] = set()
    left: list[int] = []
    for root in sorted(within):
        if root in seen:
            continue
        seen.add(root)
        path = [(root, iter(after[root]))]
        while path:
            i, ways = path[-1]
            way = next((way for way in ways if way in within and way not in seen), None)
            if way is None:
                left.append(i)
                path.pop()
            else:
                seen.add(way)
                path.append((way, iter(after[way])))
    before: dict[int, list[int]] = {i: [] for i in within}
    for i in within:
        for way in after[i]:
            if way in within:
                before[way].append(i)
    parts, placed = [], set()
    for root in reversed(left):
        part, open_ = set(), [root]
        while open_:
            i = open_.pop()
            if i not in placed:
                placed.add(i)
                part.add(i)
                open_ += before[i]
        if len(part) > 1 or any(root in after[i] for i in part):
            parts.append(part)
    return parts


def product_of(code: Sequence[Instruction], i: int) -> Product | None:
    """The shape of an instruction of the tensor core; None if it is in a register whose value is not seen."""
    opcode, operands = code[i].opcode, code[i].operands
    if opcode.startswith("UTC"):
        return _of_descriptor(code, i)
    m = re.match(r"([A-Z]GMMA)\.(?:SP\.)?(\d+)x(\d+)x(\d+)", opcode)
    if m:
        rows, n, k = map(int, m.groups()[1:])
        a_shared = re.match(r"R\d+, R\d+", operands) is None
        return Product(rows, n, k, 4, a_shared, (rows * k * a_shared + n * k) * INPUTS[m[1]])
    m = re.search(r"MMA\.(16)(8)(\d+)", opcode)
    return Product(16, 8, int(m[3]), 1, False, 0) if m else None


def _of_descriptor(code: Sequence[Instruction], i: int) -> Product | None:
    """tcgen05.mma: one thread starts it for the block, its shape is a constant (PTX ISA, "Instruction descriptor")."""
    register = IDESC.search(code[i].operands)
    written = re.compile(rf"{register[1] if register else ''}, (0x[0-9a-f]+)$")
    back = (code[j] for j in range(i - 1, -1, -1))
    last = next((each for each in back if register and each.operands.startswith(f"{register[1]},")), None)
    value = written.match(last.operands) if last is not None and last.opcode.startswith("UMOV") else None
    if value is None:
        return None
    bits = int(value[1], 16)
    rows, n, k = (bits >> 24 & 31) * 16, (bits >> 17 & 63) * 8, 16 if "HMMA" in code[i].opcode else 32
    a_shared = code[i].operands.startswith("gdesc")
    return Product(rows, n, k, 0, a_shared, (rows * k * a_shared + n * k) * 32 // k)


def _counts(code: Sequence[Instruction], loop: Sequence[int], warps: int, buffers: int) -> LoopCounts:
    classes = Counter(class_of(code[i].opcode) for i in loop)
    multiply = [i for i in loop if class_of(code[i].opcode) == "tensor core"]
    products = [product_of(code, i) for i in multiply]
    known = [each for each in products if each is not None]
    times = [warps // each.warps if each.warps else 1 for each in known]  # how often the warps issue it
    done = [2 * each.m * each.n * each.k * count for each, count in zip(known, times, strict=True)]
    flops, complete = sum(done), len(known) == len(products)
    narrow = [code[i].opcode.startswith(NARROW) for i in multiply] if complete else []
    if not products:  # fused multiply-adds of 32 threads; FFMA2 is two
        flops = sum(64 * warps * (2 if "2" in code[i].opcode else 1) for i in loop if code[i].opcode.startswith("FFMA"))
    fed = [each for each in known if each.bytes]
    moved = sum(_bytes(code[i].opcode) for i in loop) * 32 * warps
    return LoopCounts(
        len(loop),
        dict(sorted(classes.items(), key=lambda item: -item[1])),
        flops if complete else 0,
        _wait_depth([code[i] for i in loop], buffers),
        _overlap([code[i] for i in loop]),
        min((each.n for each in fed), default=None),
        min((each.n for each in fed if each.a_shared), default=None),
        moved + sum(each.bytes * count for each, count in zip(known, times, strict=True)),
        sum(each for each, is_narrow in zip(done, narrow, strict=False) if is_narrow),
    )


def _wait_depth(code: Sequence[Instruction], buffers: int) -> int | None:
    """0 where loads are asynchronous but no wait is written: another instruction waits for all. Loads by descriptors
    have a barrier for each buffer: one is read, one is filled anew, and the others are under way.
    """
    described = sum(each.opcode.startswith("UTMALDG") for each in code)
    if described:
        return described * max(buffers - 2, 0)
    if not any(class_of(each.opcode) == "asynchronous load" for each in code):
        return None
    waits = (re.search(r"SB0, (0x[0-9a-f]+)$", each.operands) for each in code if each.opcode.startswith("DEPBAR"))
    return min((int(each[1], 16) for each in waits if each), default=0)


def _overlap(code: Sequence[Instruction]) -> float | None:
    """Products of a warpgroup are under way from the last one of a group, which commits it, to the wait for all."""
    under_way, beside, exponentials = False, 0, 0
    for turn in range(2):  # a pass begins as the one before it ended
        for each in code:
            if each.opcode.startswith("WARPGROUP.DEPBAR") and each.operands.endswith("0x0"):
                under_way = False
            elif "GMMA" in each.opcode and "gsb0" in each.operands:
                under_way = True
            elif turn and class_of(each.opcode) == "exp2":
                exponentials += 1
                beside += under_way
    return round(beside / exponentials, 3) if exponentials and any("GMMA" in each.opcode for each in code) else None


def _bytes(opcode: str) -> int:
    """That a thread moves to or from shared memory."""
    if class_of(opcode) not in ("shared", "asynchronous load") or opcode.startswith("U"):
        return 0
    matrices = re.match(r"(?:LDSM|STSM).*\.M\d+\.(\d)$", opcode)
    if matrices or opcode.startswith(("LDSM", "STSM")):
        return 4 * int(matrices[1] if matrices else 1)
    return 16 if ".128" in opcode else 8 if ".64" in opcode else 4
