"""The command line given sizes, files and values that make no sense: a coded error each, and no memory asked for."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flexspec.compiler.blocks.grid import MAX_BLOCK, MAX_BLOCKS
from flexspec.compiler.cli import app
from flexspec.compiler.cli.arrays import tensor_of
from typer.testing import CliRunner

import flexspec as fs
from flexspec.expr import input_
from flexspec.ops import Type
from flexspec.orders.base import MOST_PLACES

USER_FILE = """
import torch
import flexspec as fs

ids = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
flag = fs.Input("flag", ("sequence",), "bool")
gain = fs.Input("gain", ("sequence",), "float")
near = fs.mask(lambda q, kv: (q - kv).abs() <= 3)
scattered = fs.mask(lambda q, kv: (q * 7 + kv * 3) % 5 < 2)
flagged = fs.mask(lambda q, kv: flag[q] & flag[kv])
strong = fs.mask(lambda q, kv: gain[kv] > 0.5)
by_head = fs.mask(lambda h, q, kv: q - kv < 4 * h)

def coarse(b, h, q_idx, kv_idx):
    return ids[q_idx // 1000000000000] == ids[kv_idx // 1000000000000]

def leaves(b, h, q_idx, kv_idx):
    raise SystemExit(3)
"""
HUGE = "9" * 20
LONG = "9" * 5000  # Python refuses to read or write integers of so many digits
FRAME = "'first_frame(canvas(t=30, h=4, w=4))'"
SPACE = "'first_frame(canvas(t=100000, h=100000, w=100000))'"
LINE = "'neighborhood(canvas(h=4, w=4), window=3)'"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    Path("mine.py").write_text(USER_FILE)
    Path("base.py").write_text("class Stop(BaseException):\n    pass\n\nraise Stop('no')\n")
    Path("folder.npy").mkdir()
    for name, text in {"bool": "!!bool abc", "when": "!!timestamp abc", "int": "!!int ''"}.items():
        Path(f"{name}.yaml").write_text(f"kind: {text}\n")


def header(name: str, said: str, version: int = 1, body: bytes = b"") -> None:
    """A .npy file with a header of our own."""
    size = len(said).to_bytes(2 if version == 1 else 4, "little")
    Path(name).write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + said.encode() + body)


def run(command: str):
    return CliRunner().invoke(app, shlex.split(command))


MISTAKES = [
    # sizes
    (f"show causal --length 9 --block-size {HUGE}x1", "FS030"),
    (f"show causal --length 9 --block-size {LONG}", "FS030"),
    ("show causal --length 9 --block-size 4611686018427387905", "FS030"),
    (f"show mine.py:scattered --length 9 --block-size {MAX_BLOCK + 1}", "FS030"),
    (f"show causal --length {HUGE}", "FS030"),
    ("show causal --length 1000000000000000", "FS030"),
    (f"show causal --length 9 --kv-length {HUGE}", "FS030"),
    (f"show mine.py:by_head --length 9 --heads {HUGE}", "FS030"),
    ("show mine.py:by_head --length 9 --heads 1000000000000000", "FS030"),
    ("show mine.py:by_head --length 9 --heads 4611686018427387904", "FS030"),
    ("explain mine.py:by_head --length 9 --heads 1000000000000000", "FS030"),
    ("check mine.py:by_head --against causal --length 9 --heads 1000000000000000", "FS030"),
    ("check causal --against 'causal_window(4)' --length 4611686018427387904", "FS030"),
    ("check mine.py:scattered --against causal --length 1000000000000", "FS030"),
    ("show mine.py:coarse --length 1000000000000 --block-size 1000000", "FS030"),
    (f"show causal --length 9 -o a.png --region 0:{HUGE},0:4", "FS050"),
    (f"show causal --length 9 -o a.png --region 0:{LONG},0:4", "FS050"),
    (f"show {LINE} --query {LONG}", "FS050"),
    (f"show {LINE} --query h={LONG},w=1", "FS050"),
    (f"show {LINE} --query 3 --head {HUGE}", "FS030"),
    ("show mine.py:near --length 100000000000000 --query 3", "FS030"),
    (f"show mine.py:near --length {HUGE}0 --query 3", "FS032"),
    ("build causal --target sm_90 --head-dim -1", "FS030"),
    (f"build causal --target sm_90 --head-dim {HUGE}", "FS030"),
    ("build causal --target sm_90 --batch 4611686018427387904", "FS030"),
    ("build causal --target sm_90 --kv-heads 0", "FS030"),
    # canvases and orders
    ("show 'first_frame(canvas(t=9000000000000000000, h=2))'", "FS032"),
    (f"plan 'neighborhood(window=3)' --canvas {LONG}x4", "FS032"),
    ("plan 'neighborhood(window=3)' --canvas 100000x100000x100000", "FS030"),
    (f"show {FRAME} --order 'tiled(t=99999999999999)'", "FS030"),
    (f"show {FRAME} --order 'tiled(t=4000000000000000000, h=9)' --block-size 4000000", "FS033"),
    (f"show {FRAME} --order 'tiled(t=9000000000000000000)'", "FS033"),
    (f"show {SPACE} --order hilbert --block-size {MAX_BLOCK}", "FS033"),
    ("show 'first_frame(canvas(t=1000, h=1000, w=1000))' --order hilbert", "FS033"),
    ("show 'first_frame(canvas(t=1000, h=1000, w=1000))' --order 'concatenated(tiled(4))'", "FS033"),
    ("show causal --length 1000000000 --order 'concatenated(1000000000)'", "FS033"),
    ("show causal --length 9 --order 'concatenated(9000000000000000000)'", "FS033"),
    ("show causal --length 9 --order 'striped(9000000000000000000)'", "FS033"),
    ("show causal --length 9 --order 'zigzag(1000000000000000000)'", "FS030"),
    ("build causal --target sm_90 --order 'hilbert(canvas(h=100000000, w=100000000))'", "FS033"),
    # values
    (f"show 'document()' --length 2 -p document_id={HUGE},1", "FS034"),
    (f"show 'document()' --length 2 -p document_id={LONG},1", "FS034"),
    ("show 'document()' --length 2 -p document_id=9223372036854775808,1", "FS034"),
    ("show 'document()' --length 2 -p document_id=0.5,1", "FS023"),
    ("show 'document()' --length 2 -p document_id=nan,1", "FS023"),
    ("show 'document()' --length 2 -p document_id=true,1", "FS023"),
    ("show mine.py:flagged --length 2 -p flag=true,2", "FS023"),
    ("show mine.py:strong --length 2 -p gain=1e999,1", "FS034"),
    (f"show causal --length 9 -p offset={LONG}", "FS034"),
    # files
    ("show base.py:x --length 9", "FS052"),
    ("show mine.py:leaves --length 9", "FS052"),
    (f"show {'a' * 5000}.py:x --length 9", "FS054"),
    (f"show {'a' * 5000}.yaml --length 9", "FS054"),
    (f"show causal --length 9 -o {'a' * 5000}.png", "FS054"),
    ("show bool.yaml --length 9", "FS052"),
    ("show when.yaml --length 9", "FS052"),
    ("show int.yaml --length 9", "FS052"),
    ("show 'document()' --length 9 -p document_id=folder.npy", "FS054"),
    (f"show 'document()' --length 9 -p document_id={'a' * 5000}.npy", "FS054"),
]


@pytest.mark.parametrize("command, code", MISTAKES, ids=[command[:70] for command, _ in MISTAKES])
def test_a_mistake_is_a_coded_error(command, code):
    ran = run(command)
    assert isinstance(ran.exception, SystemExit) and ran.exit_code == 2, ran.exception
    assert ran.stderr.startswith(f"[{code}] ") and not ran.stdout
    assert json.loads(run(f"{command} --json").stdout)["error"]["code"] == code


HEADERS = {
    "7 TiB": ("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }", 1),
    "past 64 bits": ("{'descr': '<i8', 'fortran_order': False, 'shape': (9000000000000000000, 9), }", 1),
    "a negative side": ("{'descr': '<i8', 'fortran_order': False, 'shape': (-2, -4), }", 1),
    "a boolean side": ("{'descr': '<i8', 'fortran_order': False, 'shape': (True,), }", 1),
    "an unknown type": ("{'descr': 'zz', 'fortran_order': False, 'shape': (8,), }", 1),
    "an unknown version": ("{'descr': '<i8', 'fortran_order': False, 'shape': (8,), }", 9),
    "no dictionary": ("x" * 100_000, 2),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_checked_before_memory_is_asked_for(name):
    said, version = HEADERS[name]
    header("ids.npy", said, version, bytes(64))
    assert run("show 'document()' --length 8 -p document_id=ids.npy").stderr.startswith("[FS054] ")


UNREAD = {
    "long doubles": (np.arange(8).astype(np.longdouble), "FS023"),
    "complex": (np.arange(8) + 0j, "FS023"),
    "words": (np.array(["a"] * 8), "FS023"),
    "dates": (np.array(["2001-01-01"] * 8, "M8[D]"), "FS023"),
    "objects": (np.array([None] * 8), "FS023"),
    "records": (np.zeros(8, [("a", "i4")]), "FS023"),
    "past 64 bits": (np.full(8, 2**63, np.uint64), "FS034"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_an_array_of_no_numbers_of_torch(name):
    array, code = UNREAD[name]
    np.save("ids.npy", array, allow_pickle=True)
    assert run("show 'document()' --length 8 -p document_id=ids.npy").stderr.startswith(f"[{code}] ")


def test_a_file_of_several_arrays_is_no_array():
    np.savez("ids.npz", a=np.arange(8))
    os.replace("ids.npz", "ids.npy")
    assert run("show 'document()' --length 8 -p document_id=ids.npy").stderr.startswith("[FS054] ")


KINDS = ["<i8", ">i8", ">i4", "<u2", ">u4", "|u1", "|i1", ">f4", ">f8", "<f2", "|b1"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_either_byte_order_are_read(kind, version):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asfortranarray(array), version=version)
    Path("ids.npy").write_bytes(file.getvalue())
    node = input_("ids", ("batch", "_", "sequence"), {"f": Type.FLOAT, "b": Type.BOOL}.get(array.dtype.kind, Type.INT))
    tensor = tensor_of(node, " ids.npy ")
    assert tensor.shape == (1, 2, 3) and tensor.tolist() == [array.tolist()]


@pytest.mark.parametrize(
    "kind, text, wanted",
    [
        (Type.INT, "9223372036854775807, -9223372036854775808", torch.tensor([2**63 - 1, -(2**63)])),
        (Type.INT, "1_000,7", torch.tensor([1000, 7])),
        (Type.BOOL, "true,0,1", torch.tensor([True, False, True])),
        (Type.FLOAT, "1e3,inf,2", torch.tensor([1000.0, torch.inf, 2.0])),
        (Type.DOUBLE, "0.1,3", torch.tensor([0.1, 3.0], dtype=torch.float64)),
    ],
)
def test_lists_have_the_values_that_are_written(kind, text, wanted):
    tensor = tensor_of(input_("x", ("sequence",), kind), text)
    assert tensor.dtype == wanted.dtype and tensor.equal(wanted)


def test_large_sizes_that_make_sense_are_taken():
    assert run(f"show causal --length 9 --block-size {MAX_BLOCK}").exit_code == 0
    assert run("check causal --against causal --length 4611686018427387904").exit_code == 0
    facts = json.loads(run(f"show {FRAME} --order 'tiled(t=1000000)' --json").stdout)
    assert sum(facts["blocks"].values()) == (16_000_000 // 128) ** 2


def test_the_library_refuses_too():
    space = fs.Canvas(t=100_000, h=100_000, w=100_000)
    tokens = torch.zeros(1, 8)
    wrong = {
        "FS030": [
            lambda: fs.block_map(fs.causal(), 2**62 + 1),
            lambda: fs.block_map(fs.causal(), 9, block_size=(1, MAX_BLOCK + 1)),
            lambda: fs.block_map(fs.causal(), 16 * (MAX_BLOCKS + 1), block_size=16),
            lambda: fs.block_map(fs.causal(), 8, order=fs.zigzag(2**40)),
            lambda: fs.kept_keys(fs.causal(), [3] * 9, canvas=2**27),
        ],
        "FS032": [lambda: fs.Canvas(t=2**31, h=2**32), lambda: fs.Canvas(t=10**5000)],
        "FS033": [
            lambda: fs.hilbert(space).permutation(space.size),
            lambda: fs.tiled(space, 4).inverse(space.size),
            lambda: fs.orders.striped(2**40).apply(tokens, dim=1),
            lambda: fs.orders.zigzag(10**5000),
            lambda: fs.concatenated(MOST_PLACES, 1).permutation(MOST_PLACES + 1),
            lambda: fs.block_map(fs.causal(), 8, order=fs.tiled(fs.Canvas(h=8, w=1), h=2**62, w=4)),
        ],
    }
    for code, calls in wrong.items():
        for call in calls:
            with pytest.raises(fs.FlexSpecError) as error:
                call()
            assert error.value.code == code


def test_letters_that_the_terminal_lacks_are_numbers():
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    words = [sys.executable, "-m", "flexspec.compiler.cli", "show", "causal", "--length", "8", "--block-size", "4"]
    ran = subprocess.run(words, capture_output=True, text=True, env=env)
    assert ran.returncode == 0 and "\\u2588" in ran.stdout and not ran.stderr
