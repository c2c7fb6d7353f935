"""Reports of kernels kept on disk: read back whole and without Triton, and never where anything differs."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import triton
from flexspec.compiler.backends import triton as door
from flexspec.compiler.backends.triton import configs, kept
from flexspec.compiler.backends.triton.configs import Config
from flexspec.compiler.backends.triton.gpus import Resident
from flexspec.compiler.backends.triton.loops import LoopReport
from flexspec.compiler.backends.triton.report import AotReport, KernelReport

import flexspec as fs

FULL = LoopReport("full", 300, 1.1, 1.0, 4800, {"float": 1600}, 2, 1 / 3, 64, None, 0, {"issue": 1200}, 0.852)
PARTIAL = replace(FULL, part="partial", wait_depth=None, overlap=None)
FILES = {"ptx": "täxt\r\n\n" * 9, "cubin": bytes(range(256)), "sass": ""}
FORWARD = KernelReport(
    *("forward", Config(128, 64, 8, 3, None, True), 200, 0, 65536, 24, 0.125, FILES),
    *(Resident(1, 3, 8), (FULL, PARTIAL), ("C7510: text",)),
)
DELTAS = KernelReport("deltas", Config(32, 1, 4, 1), 32, 0, 128, 0, 1.0, {}, Resident(16, 202, 16))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The calls for which a report was made."""
    calls = []

    def compiled(call, target, backward):
        calls.append((call, target, backward))
        return AotReport(f"{call.lowered.attention.label} {len(calls)}", target, (FORWARD, DELTAS), "söurce\n")

    monkeypatch.setenv("FLEXSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(door, "_compiled", compiled)
    monkeypatch.setattr(kept, "asked", lambda: False)
    monkeypatch.setattr(kept, "changed", lambda: False)
    return calls


@fs.mask
def band(q, kv, *, window=7):
    return (q >= kv) & (q - kv < window)


def built(mask=None, *, scores=(), scale=None, weight=None, compiled=None, **given):
    spec = fs.Attention(band() if mask is None else mask, scores, scale, weight)
    return fs.compile(spec, backend="triton", **compiled or {}).aot(
        **{"target": "sm_90", "q_len": 200, "head_dim": 64, **given}
    )


def test_a_report_is_read_back_whole(made):
    first, second = built(), built()
    assert len(made) == 1 and first is not second and first == second
    for one, other in zip(first.kernels, second.kernels, strict=True):
        assert dict(one.files) == dict(other.files) and one.facts() == other.facts() and repr(one) == repr(other)
    assert str(first) == str(second) and second.kernels[0].files == FILES


IDS, BIAS = torch.arange(200)[None] // 60, torch.linspace(0, 1, 8 * 33).view(8, 33)
OTHER_IDS = torch.arange(200)[None] // 61


def document(ids, **given):
    return {"mask": band() & fs.document(), "document_id": ids, **given}


CHANGES = {
    "a formula": ({}, {"mask": fs.causal_window(7)}),
    "a mask_mod of the same name": (
        {"mask": lambda b, h, q, kv: q - kv < 3},
        {"mask": lambda b, h, q, kv: q - kv < 4},
    ),
    "a name": ({"mask": fs.causal_window(7)}, {"mask": fs.causal_window(7).named("another")}),
    "a score_mod of the same name": (
        {"scores": [lambda score, b, h, q, kv: score * 2]},
        {"scores": [lambda score, b, h, q, kv: score * 3]},
    ),
    "a number": ({"mask": band(window=fs.Param("n")), "n": 7}, {"mask": band(window=fs.Param("n")), "n": 8}),
    "what a tensor holds": (document(IDS), document(OTHER_IDS)),
    "a tensor's dtype": (document(IDS), document(IDS.to(torch.int32))),
    "a bias": ({"scores": [fs.relative_bias(BIAS)]}, {"scores": [fs.relative_bias(BIAS + 1)]}),
    "a score": ({}, {"scores": [fs.softcap(20.0)]}),
    "a scale": ({}, {"scale": 0.3}),
    "a weight": ({}, {"weight": fs.sigmoid_weight()}),
    "a weight's number": ({"weight": fs.sigmoid_weight(bias=-1.0)}, {"weight": fs.sigmoid_weight(bias=-2.0)}),
    "a target": ({}, {"target": "sm_80"}),
    "the backward pass": ({}, {"backward": False}),
    "q_len": ({"kv_len": 300}, {"kv_len": 300, "q_len": 201}),
    "kv_len": ({}, {"kv_len": 300}),
    "the batch": ({}, {"batch": 2}),
    "heads": ({}, {"heads": 4}),
    "kv_heads": ({}, {"kv_heads": 4}),
    "head_dim": ({}, {"head_dim": 80}),
    "v_head_dim": ({}, {"v_head_dim": 32}),
    "the dtype": ({}, {"dtype": torch.float16}),
    "the block size": ({}, {"compiled": {"block_size": 64}}),
    "a map made on the device": ({}, {"compiled": {"exact": False}}),
    "an order": ({}, {"compiled": {"order": fs.tiled(fs.Canvas(t=10, w=20), t=5, w=4)}}),
    "gradients in a fixed order": ({}, {"compiled": {"deterministic": True}}),
    "gradients in any order": ({}, {"compiled": {"deterministic": False}}),
    "a bias that wants a gradient": (
        {"scores": [fs.relative_bias(BIAS)]},
        {"scores": [fs.relative_bias(BIAS.clone().requires_grad_())]},
    ),
    "a precision": ({}, {"compiled": {"precision": "int8"}}),
    "a precision's skip": (
        {"compiled": {"precision": "int8"}},
        {"compiled": {"precision": "int8", "skip": 9.0}},
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_call_is_compiled_anew(made, what):
    one, other = CHANGES[what]
    built(**one)
    built(**other)
    assert len(made) == 2
    assert [built(**one).label[-1], built(**other).label[-1]] == ["1", "2"] and len(made) == 2


def files(folder, monkeypatch, name):
    """A file that takes the place of all of ours, or of Triton's."""
    folder.mkdir()
    (folder / "a.py").write_text("one")
    (folder / "gone").symlink_to("nowhere")
    if name == "triton":
        spec = ModuleSpec("triton", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        monkeypatch.setattr(kept, "find_spec", lambda name: spec)
    else:
        monkeypatch.setattr(kept, "OWN", {folder})
    return folder / "a.py"


@pytest.mark.parametrize("name", ["triton", "flexspec"])
def test_other_sources_compile_anew(made, name, tmp_path, monkeypatch):
    source = files(tmp_path / name, monkeypatch, name)
    built()
    state = source.stat()
    source.write_text("two")
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))  # as long as it was, and dated as it was
    built()
    built()
    assert len(made) == 2
    (tmp_path / name / "b.py").write_text("")
    built()
    assert len(made) == 3


def test_other_versions_and_settings_compile_anew(made, monkeypatch):
    built()
    monkeypatch.setattr(torch, "__version__", "9.9")
    built()
    monkeypatch.setitem(configs.FORWARD["sm_90"], 64, Config(64, 64, 4, 2))
    built()
    try:
        torch.set_default_dtype(torch.float64)
        built()
    finally:
        torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(sys, "version", "3.99")
    built()
    assert len(made) == 5
    built()
    assert len(made) == 5


@pytest.mark.parametrize("name", ["triton", "flexspec"])
def test_where_sources_are_younger_than_the_process_nothing_is_kept(made, name, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(kept, "BEGAN", time.time() * 1e9)  # whoever edits while tests run
    assert not kept.changed()
    monkeypatch.setenv("FLEXSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(door, "_compiled", lambda *_: made.append(1) or AotReport("", "sm_90", (), ""))
    monkeypatch.setattr(kept, "asked", lambda: False)
    files(tmp_path / name, monkeypatch, name)
    built()
    built()
    assert len(made) == 2 and not (tmp_path / "cache").exists()
    monkeypatch.setattr(kept, "BEGAN", math.inf)
    built()
    built()
    assert len(made) == 3


def test_where_something_is_asked_of_triton_nothing_is_kept(made, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "asked", lambda: True)
    built()
    built()
    assert len(made) == 2 and not (tmp_path / "cache").exists()


def test_variables_and_knobs_ask_something_of_triton(monkeypatch):
    for name in list(os.environ):
        if name.startswith(kept.ASKS):
            monkeypatch.delenv(name)
    assert not kept.asked()
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    assert not kept.asked()
    for name in ("TRITON_INTERPRET", "DISABLE_LLVM_OPT", "MLIR_ENABLE_DUMP", "PTXAS_OPTIONS"):
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert kept.asked()
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.enable_asan = False
        os.environ.pop("TRITON_ENABLE_ASAN", None)
        assert kept.asked()
    assert not kept.asked()


def spoilt(text, how):
    found = json.loads(text)
    if how == "other facts":
        found["of"]["heads"] = 99
    elif how == "no kernels":
        del found["report"]["kernels"]
    elif how == "other bytes":
        found["report"]["kernels"][0]["files"]["ptx"][1] = "AAAA"
    elif how == "a field more":
        found["report"]["kernels"][0]["more"] = 1
    return "[]" if how == "a list" else text[: len(text) // 2] if how == "half" else json.dumps(found)


@pytest.mark.parametrize("how", ["other facts", "no kernels", "other bytes", "a field more", "a list", "half"])
def test_files_that_cannot_be_read_are_made_anew(made, how, tmp_path):
    built()
    (path,) = (tmp_path / "cache" / "reports").iterdir()
    path.write_text(spoilt(path.read_text(), how))
    built()
    assert len(made) == 2
    built()
    assert len(made) == 2


TWICE = """
import sys, json, hashlib, flexspec as fs
if "tiles" in sys.argv:
    from flexspec.compiler.backends.triton.configs import FORWARD, Config
    FORWARD["sm_80"][32] = Config(64, 32, 4, 2)
report = fs.compile(fs.causal(), backend="triton").aot("sm_80", q_len=300, head_dim=32, backward=False)
files = [[kind, repr(content)] for each in report.kernels for kind, content in each.files.items()]
digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
print(json.dumps({"triton": "triton" in sys.modules, "report": [report.facts(), report.source, digest]}))
"""


def test_a_kept_report_needs_no_triton(tmp_path):
    """The same report in a process that imports no Triton; other tiles are compiled."""
    asks = (*kept.ASKS, "FLEXSPEC_CACHE")
    env = {name: value for name, value in os.environ.items() if not name.startswith(asks)}
    env |= {"FLEXSPEC_CACHE": str(tmp_path / "flexspec"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    run = {"env": env, "cwd": Path(__file__).parent.parent, "capture_output": True, "text": True, "check": True}
    first, second, other = (
        json.loads(subprocess.run([sys.executable, "-c", TWICE, word], **run).stdout) for word in ("", "", "tiles")
    )
    assert first["triton"] and not second["triton"] and first["report"] == second["report"]
    assert other["triton"] and other["report"][0]["kernels"][0]["block_m"] == 64
