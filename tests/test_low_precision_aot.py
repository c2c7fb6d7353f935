"""Kernels in 8 bits compiled with no GPU at hand: the right instructions of the tensor core, loops without waste."""

import json
from collections import Counter

import pytest
from test_aot import output, started

import flexspec as fs

TYPES = {  # of the products of q and k, and of weights and values
    ("sm_80", "int8"): ("IMMA", "HMMA"),
    ("sm_89", "fp8"): ("QMMA", "QMMA"),
    ("sm_90", "int8"): ("IGMMA", "HGMMA"),
    ("sm_90", "fp8"): ("QGMMA", "QGMMA"),
    ("sm_100", "fp8"): ("UTCQMMA", "UTCQMMA"),
}
PROGRAM = """
import json, re, sys, torch, flexspec as fs
image = fs.Canvas(h=32, w=64)
tiles = fs.sliding_tile(image, {"h": 12, "w": 24}, {"h": 4, "w": 8})
scored = fs.Attention(mask=fs.causal(), scores=[fs.softcap(20.0)], weight=fs.sink_logit(torch.zeros(4)))
given = dict(q_len=2048, heads=4, kv_heads=2, backward=False)
cases = [("causal", fs.causal(), None, {}), ("tiles", tiles, fs.tiled(image, h=4, w=8), {})]
cases += [("scored", scored, None, {}), ("skip", fs.causal(), None, {"skip": 10.0})]
for target, precision in json.loads(sys.argv[1]):
    for name, spec, order, options in cases:
        for head_dim in (64, 128)[: 2 if name == "causal" else 1]:
            attend = fs.compile(spec, order=order, precision=precision, **options)
            report = attend.aot(target, head_dim=head_dim, **given)
            print(json.dumps([target, precision, name, head_dim, report.facts()["kernels"], str(report)]))
    step = fs.compile(fs.causal(8191), backend="triton", precision=precision)
    report = step.aot(target, head_dim=128, heads=32, kv_heads=8, q_len=1, kv_len=8192)
    loaded = sorted(set(re.findall(r"async_copy_global_to_local .*x(\\w+),", report.kernels[0].files["ttgir"])))
    print(json.dumps([target, precision, "step", 128, report.facts()["kernels"], loaded]))
"""


@pytest.fixture(scope="module")
def compiled():
    """Kernels and the printed report by target, precision, case and channels."""
    lines = output(started("-c", PROGRAM, json.dumps(list(TYPES)))).splitlines()
    return {tuple(key): rest for *key, kernels, text in map(json.loads, lines) for rest in [(kernels, text)]}


@pytest.mark.parametrize(("target", "precision"), TYPES)
def test_the_tensor_core_multiplies_8_bits(compiled, target, precision):
    for name, head_dim in (("causal", 64), ("causal", 128), ("tiles", 64), ("scored", 64), ("skip", 64)):
        (*others, kernel), text = compiled[target, precision, name, head_dim]
        assert [each["name"] for each in others] == ["quantise_queries", "quantise_keys"]
        assert all(each["spills"] == 0 and each["flaws"] == [] for each in others)
        used = Counter(kernel["tensor_cores"])
        assert set(used) == set(TYPES[target, precision]) and used.total() == kernel["tensor_core_instructions"]
        assert kernel["name"] == "low_precision" and f"{used[TYPES[target, precision][0]]} " in text.splitlines()[-1]
        assert 0 < kernel["registers"] <= 255 and min(kernel["resident"].values()) >= 1, kernel
        if name == "skip":  # values of a tile are loaded once it is known to matter
            assert set(kernel["flaws"]) <= {"wait 1"}
            continue
        assert kernel["flaws"] == [], kernel
        for loop in kernel["loops"].values():
            assert loop["products"] == 1.0 and loop["wait_depth"] >= 2
        assert kernel["loops"]["full"]["local"] == 0


@pytest.mark.parametrize(("target", "precision"), TYPES)
def test_a_step_reads_keys_and_values_in_8_bits(compiled, target, precision):
    """The cache of `fs.quantise`; what is multiplied has 16 bits, as its bytes are what costs time."""
    (decode, merge), loaded = compiled[target, precision, "step", 128]
    assert {"int8": "i8", "fp8": "f8E4M3FN"}[precision] in loaded and not {"bf16", "f16"} & set(loaded)
    assert (decode["name"], merge["name"]) == ("decode", "merge") and decode["flaws"] == []
    assert set(decode["tensor_cores"]) == {"HMMA"} and min(decode["resident"].values()) >= 1
    assert all(loop["products"] == 1.0 and loop["wait_depth"] >= 2 for loop in decode["loops"].values())


def test_products_of_8_bits_count_half(compiled):
    """At 64 channels a block of 128 x 128 needs 1024 cycles of an sm_90 in 16 bits."""
    cycles = {
        precision: compiled["sm_90", precision, "causal", 64][0][-1]["loops"]["full"]["cycles"]["products"]
        for precision in ("int8", "fp8")
    }
    assert cycles == {"int8": 768, "fp8": 512}


def test_a_gpu_without_fp8_is_told():
    attend = fs.compile(fs.causal(), precision="fp8")
    for target in ("sm_80", "sm_86", "gfx942"):
        with pytest.raises(fs.FlexSpecError, match=f"FS042.*{target} multiplies no e4m3 numbers"):
            attend.aot(target)


def test_flexspec_build_takes_a_precision():
    words = ["build", "causal()", "--target", "sm_90", "--precision", "int8", "--length", "512", "--json"]
    facts = json.loads(output(started("-m", "flexspec.compiler.cli", *words)))
    assert [each["name"] for each in facts["kernels"]] == ["quantise_queries", "quantise_keys", "low_precision"]
    assert facts["kernels"][-1]["tensor_cores"].keys() == {"IGMMA", "HGMMA"}
