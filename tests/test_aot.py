"""Kernels compiled with no GPU at hand: the mission patterns for two GPUs, and the report on them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aot_matrix import HEAD_DIMS, PATTERNS, TARGETS
from flexspec.compiler.backends.triton.configs import Config
from flexspec.compiler.backends.triton.gpus import GPUS, Resident, occupancy
from flexspec.compiler.backends.triton.loops import LoopReport
from flexspec.compiler.backends.triton.report import AotReport, KernelReport

import flexspec as fs

ROOT = Path(__file__).parent.parent
SMALL = """
import json, torch, flexspec as fs
spec = fs.Attention(mask=fs.causal_window(100) & fs.document(), scores=[fs.softcap(20.0), fs.alibi()])
given = dict(heads=4, kv_heads=2, q_len=200, kv_len=333, document_id=torch.zeros(1, 333, dtype=torch.int64))
several = ("sm_100", torch.float16, 80), ("gfx942", torch.bfloat16, 64), ("sm_80", torch.float32, 32)
for target, dtype, head_dim in several:
    report = fs.compile(spec, backend="triton").aot(target, dtype=dtype, head_dim=head_dim, **given)
    print(json.dumps({"target": target, "ptx": report.kernels[0].ptx[:2000], **report.kernels[0].facts()}))
"""
ROUNDED = """
import json, torch, flexspec as fs
masks = fs.causal(), fs.mask(lambda q, kv: torch.sqrt(q * 0.1 + kv / 3) < kv * 0.7 - q)
for mask in masks:
    report = fs.compile(mask, backend="triton").aot("sm_80", head_dim=32, heads=1, q_len=256, kv_len=256)
    print(json.dumps({each.name: each.ptx for each in report.kernels}))
"""
FEW = """
import json, torch, flexspec as fs
spec = fs.Attention(mask=fs.causal(999), weight=fs.sink_logit(torch.zeros(8)))
for target in ("sm_80", "sm_90"):
    for q_len in (1, 16):
        report = fs.compile(spec, backend="triton").aot(target, kv_heads=2, q_len=q_len, kv_len=1000)
        print(json.dumps(report.facts()))
spec = fs.Attention(mask=fs.causal(), weight=fs.sigmoid_weight())
report = fs.compile(spec, backend="triton").aot("sm_80", q_len=64, head_dim=32, backward=False)
print(json.dumps({"source": report.source, **report.facts()}))
"""


CUT = """
import json, torch, flexspec as fs
from flexspec.compiler.backends.triton.configs import TABLES, Config
for target in ("sm_80", "sm_90"):
    for block_size in (32, 64):
        attend = fs.compile(fs.causal(), backend="triton", block_size=block_size)
        print(json.dumps(attend.aot(target, head_dim=64, q_len=512).facts()))
TABLES["backward_kv"]["sm_90"][128] = Config(32, 64, 8, 2)
print(json.dumps(fs.compile(fs.causal(), backend="triton").aot("sm_90", head_dim=128, q_len=512).facts()))
"""
LATE = """
import json, torch, flexspec as fs
from flexspec.compiler.backends.triton.configs import FORWARD, Config
masks = fs.causal(), fs.causal() & fs.document((torch.arange(4096) // 700)[None])
for late in (None, Config(128, 64, 8, 3, None, True, True)):
    FORWARD["sm_90"][128] = late or FORWARD["sm_90"][128]
    for mask in masks:
        (kernel,) = fs.compile(mask, backend="triton").aot("sm_90", backward=False).kernels
        print(json.dumps([kernel.files["sass"], kernel.facts()]))
"""
PARTED = """
import json, flexspec as fs
for target in ("sm_80", "sm_90"):
    for head_dim in (80, 192):
        report = fs.compile(fs.causal(), backend="triton").aot(target, head_dim=head_dim, q_len=512)
        print(json.dumps(report.facts()))
"""
WARNED = """
import json, flexspec as fs
from flexspec.compiler.backends.triton.configs import TABLES, Config
TABLES["forward"]["sm_90"][64] = Config(128, 128, 8, 3, 128)
report = fs.compile(fs.causal(), backend="triton").aot("sm_90", head_dim=64, q_len=512, backward=False)
print(json.dumps(report.facts()))
"""


def started(*command, **variables):
    """A Python process in which Triton compiles."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    return subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, text=True, stdout=-1, stderr=-1)


def output(process):
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.fixture(scope="module")
def matrix():
    """Rows of kernels by target; the targets are compiled side by side."""
    running = {target: started("-m", "tests.aot_matrix", target) for target in TARGETS}
    return {target: json.loads(output(process)) for target, process in running.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_loops_of_the_mission_patterns_waste_nothing(matrix, target):
    """Each product is done once, loads are two groups ahead, and no full loop reaches spilt values."""
    rows = matrix[target]
    assert {(row["pattern"], row["head_dim"]) for row in rows} == {(name, d) for name in PATTERNS for d in HEAD_DIMS}
    for row in rows:
        assert 0 < row["registers"] <= 255 and row["shared_bytes"] <= GPUS[target].block_shared, row
        assert 0 < row["occupancy"] <= 1 and min(row["resident"].values()) >= 1, row
        # where a second block was worth a limit of registers, one instruction in fifty may reach a spilt value
        least = 0 if row["max_registers"] is None else row["loops"]["full"]["instructions"] / 50
        assert row["warnings"] == [] and all(flaw.startswith("local") for flaw in row["flaws"]), row
        multiplies = row["name"] != "deltas"
        assert (row["tensor_core_instructions"] > 0) == multiplies == bool(row["loops"]), row
        if multiplies:
            full, partial = row["loops"]["full"], row["loops"]["partial"]
            assert full["products"] == partial["products"] == 1.0
            assert full["wait_depth"] >= 2 and partial["wait_depth"] >= 2
            assert full["local"] <= least, row
            assert full["per_block"] < partial["per_block"] and 0.5 < full["bound"] <= 1
            assert (full["least_n"] is not None) == (target == "sm_90")


@pytest.mark.parametrize("target", TARGETS)
def test_two_forward_blocks_share_a_multiprocessor(matrix, target):
    for row in matrix[target]:
        if row["name"] == "forward":
            assert min(row["resident"].values()) >= 2, row


def test_small_blocks_cut_tiles_and_no_product_is_done_twice():
    """Fewer rows take fewer warps; with all eight, each product of 64 keys is done one and a half times."""
    *cut, wasteful = map(json.loads, output(started("-c", CUT)).splitlines())
    assert len(cut) == 4
    for report in cut:
        for row in report["kernels"]:
            assert row["flaws"] == [] and all(loop["products"] == 1.0 for loop in row["loops"].values()), row
    (row,) = (row for row in wasteful["kernels"] if row["name"] == "backward_kv")
    assert row["loops"]["full"]["products"] == 1.5 and {"products 1.50", "wait 0"} <= set(row["flaws"])


def test_tiles_by_descriptors_and_products_beside_exponentials():
    """Loads by descriptors with two tiles under way; and where p v is late, it runs beside all exponentials: no wait
    stands between its commit and the next product."""
    *early, one, other = map(json.loads, output(started("-c", LATE)).splitlines())
    for late, kernels in ((False, early), (True, (one, other))):
        for sass, facts in kernels:
            assert "UTMALDG" in sass and "LDGSTS" not in sass and facts["flaws"] == [], facts
            for loop in facts["loops"].values():
                assert loop["wait_depth"] >= 2 and loop["products"] == 1.0
                assert loop["overlap"] == (1.0 if late else 0.0)


def test_channels_between_powers_of_two_are_not_multiplied_in_vain():
    for report in map(json.loads, output(started("-c", PARTED)).splitlines()):
        assert len(report["kernels"]) == 4
        for row in report["kernels"]:
            assert row["flaws"] == [] and all(loop["products"] == 1.0 for loop in row["loops"].values()), row


def test_ptxas_warns_again_of_a_binary_that_was_kept(tmp_path):
    """The second report reads the binary from Triton's cache, where no log lies."""
    env = {"FLEXSPEC_CACHE": str(tmp_path / "flexspec"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    first = json.loads(output(started("-c", WARNED, **env)))
    shutil.rmtree(tmp_path / "flexspec" / "reports")
    second = json.loads(output(started("-c", WARNED, **env)))
    assert first == second
    assert any("C75" in warning for warning in first["kernels"][0]["warnings"])
    assert any("C75" in flaw for flaw in first["kernels"][0]["flaws"])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("target", TARGETS)
def test_the_loop_over_full_runs_has_no_mask_arithmetic(matrix, target, head_dim):
    """One loop of each kernel, over lists or runs, is the same, operation for operation, whatever the mask; the other
    depends on it.
    """
    rows = [row for row in matrix[target] if row["head_dim"] == head_dim]
    names = {row["name"] for row in rows}
    assert names == {"forward", "deltas", "backward_q", "backward_kv"}
    kinds = {(row["name"], row["lists"]) for row in rows if row["name"] != "deltas"}  # which has no loop
    assert {lists for name, lists in kinds if name == "forward"} == {True, False}
    for kind in kinds:
        name = kind[0]
        first, *rest = (
            [tuple(loop) for loop in row["operations"]] for row in rows if (row["name"], row["lists"]) == kind
        )
        common = set(first).intersection(*rest)
        assert not rest or (common and all(set(loops) - common for loops in (first, *rest))), name


def test_scores_groups_odd_lengths_and_other_targets():
    wide, amd, exact = (json.loads(line) for line in output(started("-c", SMALL)).splitlines())
    assert ".target sm_100" in wide["ptx"] and not amd["ptx"]
    assert wide["tensor_core_instructions"] and amd["tensor_core_instructions"]
    assert exact["tensor_core_instructions"] == 0  # float32 is multiplied as float32
    assert wide["flaws"] == exact["flaws"] == [] and not amd["loops"]
    assert wide["loops"]["full"]["padding"] == wide["loops"]["full"]["products"] == 1.6  # 80 channels in 128


def test_few_queries_take_the_decode_kernels():
    *few, last = map(json.loads, output(started("-c", FEW)).splitlines())
    assert [each["name"] for each in last["kernels"]] == ["forward"] and "def score(" in last["source"]
    assert len(few) == 4
    for report in few:
        decode, merge = report["kernels"]
        assert (decode["name"], merge["name"]) == ("decode", "merge")
        assert decode["tensor_core_instructions"] > 0 and merge["tensor_core_instructions"] == 0
        for each in (decode, merge):
            assert each["spills"] == 0 and 0 < each["registers"] <= 255 and each["occupancy"] > 0, each
            assert each["flaws"] == [], each


def test_flexspec_build_takes_lengths(tmp_path):
    words = ["build", "causal(offset=511)", "--target", "sm_90", "--q-len", "1", "--kv-len", "512", "--json"]
    facts = json.loads(output(started("-m", "flexspec.compiler.cli", *words)))
    assert [each["name"] for each in facts["kernels"]] == ["decode", "merge"]


def test_floats_of_a_mask_are_rounded_one_by_one():
    """A product and a sum are one operation for the weights, but not where a mask multiplies floats."""
    whole, floats = (json.loads(line) for line in output(started("-c", ROUNDED)).splitlines())
    for name in ("forward", "backward_q", "backward_kv"):
        assert "fma.rn.f32" in whole[name] and "sqrt" not in whole[name]
        assert "fma.rn.f32" not in floats[name] and "mul.rn.f32" in floats[name]
        assert "div.rn.f32" in floats[name] and "sqrt.rn.f32" in floats[name]
        assert not re.search(r"(div|sqrt)\.approx\.f32", floats[name])


def test_flexspec_build_writes_what_it_made(tmp_path):
    words = ["build", "causal()", "--target", "sm_90", "--head-dim", "64", "-o", str(tmp_path / "made"), "--json"]
    facts = json.loads(output(started("-m", "flexspec.compiler.cli", *words)))
    assert facts["target"] == "sm_90" and [each["name"] for each in facts["kernels"]][0] == "forward"
    assert {path.suffix for path in (tmp_path / "made").iterdir()} == {
        ".json",
        ".py",
        ".ttgir",
        ".ptx",
        ".cubin",
        ".sass",
    }
    assert "exponentials" in facts["assumptions"]
    assert (tmp_path / "made" / "forward.cubin").read_bytes().startswith(b"\x7fELF")
    assert ".target sm_90" in (tmp_path / "made" / "forward.ptx").read_text()
    assert "def end(b, h, q, values):" in (tmp_path / "made" / "functions.py").read_text()
    written = json.loads((tmp_path / "made" / "report.json").read_text())
    assert written == {name: value for name, value in facts.items() if name != "folder"}


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "blocks"),
    [
        ("sm_80", 8, 128, 0, 2),  # 65,536 registers / (8 * 32 * 128)
        ("sm_80", 4, 32, 1024, 16),  # 64 warps / 4
        ("sm_80", 1, 32, 1024, 32),  # blocks
        ("sm_90", 4, 64, 75 * 1024, 3),  # (75 + 1) KB * 3 = 228 KB
        ("sm_90", 4, 64, 76 * 1024, 2),
        ("sm_90", 4, 129, 0, 3),  # 129 registers take the room of 136
        ("sm_80", 4, 64, 164 * 1024, 0),
        ("gfx942", 4, 128, 16 * 1024, 4),
    ],
)
def test_occupancy(target, warps, registers, shared, blocks):
    assert occupancy(GPUS[target], warps, registers, shared) == blocks * warps / GPUS[target].warps


def test_a_report_is_a_table_and_a_folder(tmp_path):
    figures = (0.125, {"ptx": "text", "cubin": b"12"}, Resident(1, 3, 8))
    full = LoopReport("full", 300, 1.0, 1.0, 4800, {"float": 1600}, 2, 0.5, 64, 64, 0, {"issue": 1200}, 0.852)
    partial = LoopReport("partial", 400, 1.5, 1.0, 6400, {"float": 1600}, 0, None, None, None, 7, {"issue": 1600}, 0.64)
    kernel = KernelReport(
        "forward", Config(128, 64, 8, 3), 200, 0, 65536, 24, *figures, (full, partial), ("C7510: text",)
    )
    stats = KernelReport("deltas", Config(32, 1, 4, 1), 32, 0, 128, 0, 1.0, {}, Resident(16, 202, 16))
    report = AotReport("causal()", "sm_90", (kernel, stats), "source")
    titles = "kernel   tile    warps  stages  registers  spills  shared  blocks  "
    assert str(report).splitlines() == [
        "causal() on sm_90",
        titles + "loop     products  per block  wait  overlap  least N  local  bound",
        "forward  128x64  8      3       200        0       65,536  1/3     "
        "full     1.00      4,800      2     50%      64       0      85% issue",
        " " * len(titles) + "partial  1.50      6,400      0     -        -        7      64% issue",
        "deltas   32x1    4      1       32         0       128     16/202  "
        "-        -         -          -     -        -        -      -",
        "forward: C7510: text",
    ]
    assert kernel.flaws == ["C7510"] and stats.flaws == []
    assert kernel.facts()["loops"]["partial"]["local"] == 7 and kernel.facts()["loops"]["full"]["limit"] == "issue"
    assert json.loads(json.dumps(report.facts()))["kernels"][0]["resident"] == {
        "registers": 1,
        "shared": 3,
        "others": 8,
    }
    assert (kernel.ptx, kernel.cubin) == ("text", b"12")
    folder = report.write(tmp_path / "a" / "b")
    assert (folder / "forward.ptx").read_text() == "text" and (folder / "functions.py").read_text() == "source"
    with pytest.raises(fs.FlexSpecError, match="FS054"):
        report.write(folder / "forward.ptx")


def test_mistakes():
    attend = fs.compile(fs.causal())
    with pytest.raises(fs.FlexSpecError, match="FS041.*no target 'sm_91'"):
        attend.aot("sm_91")
    with pytest.raises(fs.FlexSpecError, match="FS042.*at most 256 channels"):
        attend.aot("sm_90", head_dim=512)
    with pytest.raises(fs.FlexSpecError, match="FS040.*no multiple"):
        attend.aot("sm_90", heads=3, kv_heads=2)
    with pytest.raises(fs.FlexSpecError, match="FS020.*document_id"):
        fs.compile(fs.document()).aot("sm_90")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the kernels are not interpreted")
def test_interpreted_kernels_cannot_be_compiled():
    with pytest.raises(fs.FlexSpecError, match="FS042.*interprets"):
        fs.compile(fs.causal()).aot("sm_90")
