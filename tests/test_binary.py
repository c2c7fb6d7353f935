"""Listings of machine code, written by hand: what is a loop, what its instructions are, and what they come to."""

import pytest
from flexspec.compiler.backends.triton.binary import class_of, parsed, product_loops
from flexspec.compiler.backends.triton.configs import Config
from flexspec.compiler.backends.triton.loops import loops_of


def listing(*lines: str) -> str:
    """Instructions 16 bytes apart, as cuobjdump writes them."""
    encoded = "/* 0x000000ff00017b82 */"
    return "\n".join(
        f"        /*{16 * i:04x}*/  {line} ;  {encoded}\n{' ' * 60}{encoded}" for i, line in enumerate(lines)
    )


AMPERE = listing(
    "LDC R1, c[0x0][0x28]",  # 0x00
    "@P0 BRA 0x1a0",  # 0x10: there are no runs
    "MOV R2, RZ",  # 0x20: over runs
    "LDGSTS.E.BYPASS.128 [R9], [R2.64], !P1",  # 0x30
    "LDGDEPBAR",  # 0x40
    "DEPBAR.LE SB0, 0x2",  # 0x50: over tiles of a full run
    "LDSM.16.M88.4 R8, [R20]",  # 0x60
    "LDS.64 R8, [R20]",  # 0x70
    "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x80
    "@!P3 BRA 0xb0",  # 0x90: inside the loop
    "FADD R1, R1, R1",  # 0xa0
    "MUFU.EX2 R5, R5",  # 0xb0
    "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0xc0
    "LDGSTS.E.BYPASS.128 [R9], [R2.64], !P1",  # 0xd0
    "LDGDEPBAR",  # 0xe0
    "@P5 CALL.REL.NOINC 0x110",  # 0xf0: how ptxas leaves a loop
    "BRA 0x50",  # 0x100
    "DEPBAR.LE SB0, 0x0",  # 0x110: no part of the loop
    "@!P0 BRA 0x20",  # 0x120
    "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x130: over tiles of a partial run
    "ISETP.GE.AND P1, PT, R3, R7, PT",  # 0x140
    "STL [R1], R6",  # 0x150
    "BRA.U UP0, 0x180",  # 0x160
    "BRA 0x130",  # 0x170
    "FFMA R1, R2, R3, R4",  # 0x180: a loop without a product
    "@P2 BRA 0x180",  # 0x190
    "EXIT",  # 0x1a0
    "BRA 0x1b0",  # 0x1b0
)


def test_innermost_loops_that_multiply():
    partial, full = product_loops(parsed(AMPERE), warps=4)
    assert (partial.instructions, full.instructions) == (5, 12)
    assert partial.classes == {"branch": 2, "tensor core": 1, "comparison": 1, "local": 1}
    assert full.classes["tensor core"] == full.classes["shared"] == 2
    assert full.classes["exp2"] == full.classes["asynchronous load"] == full.classes["float"] == 1


def test_products_waits_and_bytes():
    partial, full = product_loops(parsed(AMPERE), warps=4)
    assert full.flops == 2 * 4 * (2 * 16 * 8 * 16) and partial.flops == 4 * (2 * 16 * 8 * 16)
    assert full.wait_depth == 2 and partial.wait_depth is None
    assert full.shared_bytes == 4 * 32 * (16 + 8 + 16)  # a matrix has 4 bytes a thread
    assert full.least_n is full.least_n_a_shared is None  # operands come from registers


def test_a_block_beside_the_loop_belongs_to_it():
    """A wait for Blackwell's tensor core tries again past the end of the kernel."""
    code = listing(
        "UMOV UR19, 0x8100490",  # 0x00
        "UTCHMMA gdesc[UR24], gdesc[UR22], tmem[UR8], tmem[UR18], idesc[UR19], !UPT",  # 0x10
        "UMOV UR5, 0x8110490",  # 0x20
        "UTCHMMA tmem[UR7], gdesc[UR30], tmem[UR12], tmem[UR4], idesc[UR5], UPT",  # 0x30
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR6+0x18000], R0",  # 0x40
        "@!P2 BRA 0x80",  # 0x50
        "@P0 BRA 0x10",  # 0x60
        "EXIT",  # 0x70
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR6+0x18000], R0",  # 0x80
        "@!P2 BRA 0x80",  # 0x90
        "BRA 0x60",  # 0xa0
    )
    (loop,) = product_loops(parsed(code), warps=8)
    assert loop.instructions == 9
    assert loop.flops == 2 * (2 * 128 * 64 * 16)  # one thread starts each for the block
    assert loop.shared_bytes == (128 * 16 + 64 * 16) * 2 + 64 * 16 * 2
    assert loop.least_n == loop.least_n_a_shared == 64


def test_a_descriptor_that_is_no_constant_gives_no_product():
    code = listing("UIADD3 UR5, UR6, UR7, URZ", "UTCHMMA gdesc[UR2], gdesc[UR4], tmem[UR8], tmem[UR4], idesc[UR5], UPT")
    (loop,) = product_loops(parsed(code + "\n" + listing("@P0 BRA 0x0").replace("/*0000*/", "/*0020*/")), warps=4)
    assert loop.flops == 0


def test_products_of_warpgroups():
    code = listing(
        "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT",
        "HGMMA.64x128x16.F32.BF16 R24, R100, gdesc[UR12].tnspB, R24, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x0",
        "LDGSTS.E.BYPASS.128 [R9], [R2.64], !P1",
        "DEPBAR.LE SB0, 0x4",
        "@P0 BRA 0x0",
    )
    (loop,) = product_loops(parsed(code), warps=8)
    assert loop.flops == 2 * (2 * 64 * 16 * 16 + 2 * 64 * 128 * 16)
    assert loop.shared_bytes == 2 * ((64 * 16 + 16 * 16) * 2 + 128 * 16 * 2) + 8 * 32 * 16
    assert (loop.wait_depth, loop.least_n, loop.least_n_a_shared) == (4, 16, 16)


def test_loads_by_descriptors_wait_for_the_buffer_that_is_next():
    loads = ["UTMALDG.2D [UR24], [UR36]"] * 2
    loop = listing("HGMMA.64x16x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT", *loads, "@P0 BRA 0x0")
    depths = [product_loops(parsed(loop), 8, buffers)[0].wait_depth for buffers in (1, 2, 3, 5)]
    assert depths == [0, 0, 2, 6]


def test_exponentials_beside_products():
    """Of four, one lies between a wait and the next commit, one before any commit."""
    exp2, wait = "MUFU.EX2 R1, R1", "WARPGROUP.DEPBAR.LE gsb0, "
    commit = "HGMMA.64x16x16.F32.BF16 R24, gdesc[UR12], R24, gsb0"
    overlaps = [
        product_loops(parsed(listing(*pieces, "@P0 BRA 0x0")), 8)[0].overlap
        for pieces in (
            (exp2, commit, wait + "0x0", exp2, commit, exp2, exp2),  # the last commit holds over the end of a pass
            (exp2, commit, wait + "0x1", exp2, commit, wait + "0x0"),
            (exp2, commit, wait + "0x0"),
            (commit, wait + "0x0"),
            (exp2, "HMMA.16816.F32 R4, R8, R12, R4"),
        )
    ]
    assert overlaps == [0.75, 0.5, 0.0, None, None]


def test_loads_without_a_wait_of_their_own_are_all_waited_for():
    (loop,) = product_loops(parsed(listing("HMMA.16816.F32 R4, R8, R12, R4", "LDGSTS.E [R9], [R2]", "@P0 BRA 0x0")), 4)
    assert loop.wait_depth == 0


def test_threads_that_multiply():
    """Float32: the loops with most multiply-adds, not one that sums up something."""
    short = ["FFMA R1, R2, R3, R4", "@P0 BRA 0x0"]
    long = [*["FFMA R1, R2, R3, R4"] * 9, "FFMA2 R1, R2, R3, R4", "FADD R1, R1, R1", "@P0 BRA 0x20", "EXIT"]
    (loop,) = product_loops(parsed(listing(*short, *long)), warps=2)
    assert loop.flops == 11 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("opcode", "name"),
    [
        ("FADD.FTZ", "float"),
        ("F2FP.BF16.F32.PACK_AB", "conversion"),
        ("LDSM.16.MT88.4", "shared"),
        ("LDGDEPBAR", "synchronisation"),
        ("LDG.E.64", "global"),
        ("LDGSTS.E.BYPASS.128", "asynchronous load"),
        ("IMAD.MOV.U32", "integer"),
        ("SHFL.BFLY", "shuffle"),
        ("SHF.R.U32.HI", "integer"),
        ("MUFU.RCP", "other functions"),
        ("WARPGROUP.ARRIVE", "synchronisation"),
        ("BRA.U", "branch"),
        ("NOP", "other"),
    ],
)
def test_classes(opcode, name):
    assert class_of(opcode) == name


def test_what_a_loop_comes_to_for_128_by_128_pairs():
    """Two products of 64 x 64 pairs and 16 channels, by one warpgroup, of which the head has 8."""
    code = listing(
        "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR12], RZ, !UPT",
        *["HGMMA.64x16x16.F32.BF16 R24, R100, gdesc[UR12].tnspB, R24"] * 4,
        *["MUFU.EX2 R5, R5"] * 10,
        "@P0 BRA 0x0",
    )
    (loop,) = loops_of("forward", code, Config(64, 64, 4, 3), (8, 8), "sm_90")
    assert loop.part == "full" and loop.products == loop.padding == 2.0
    assert loop.instructions == 16 and loop.per_block == 16 * 4 * 4
    assert loop.cycles["issue"] == 16 * 4 * 4 / 4
    assert loop.cycles["products"] == 4 * (2 * 2 * 64 * 64 * 16) / 4096
    assert loop.cycles["exponentials"] == 4 * 10 * 4 * 32 / 16
    assert loop.limit == "exponentials"
    assert loop.bound == round(4 * (2 * 2 * 64 * 64 * 8) / 4096 / loop.cycles["exponentials"], 3)
    assert loops_of("deltas", code, Config(64, 64, 4, 3), (8, 8), "sm_90") == ()


def test_a_call_that_does_not_return_is_a_jump():
    code = listing("HMMA.16816.F32 R4, R8, R12, R4", "@P1 CALL.REL.NOINC 0x30", "EXIT", "FADD R1, R1, R1", "BRA 0x0")
    (loop,) = product_loops(parsed(code), warps=4)
    assert loop.instructions == 4
