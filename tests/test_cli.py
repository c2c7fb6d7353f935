"""The command line: every command, its JSON, its exit codes, and that no mistake ends in a traceback."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flexspec.compiler.cli import app
from typer.testing import CliRunner

import flexspec as fs
from flexspec.patterns import CATALOG
from flexspec.spec import save

USER_FILE = """
import torch
import flexspec as fs
from helper import WINDOW

@fs.mask
def near(q, kv, *, window=WINDOW):
    return (q - kv).abs() <= window

ids = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])

def mask_mod(b, h, q_idx, kv_idx):
    return ids[q_idx] == ids[kv_idx]

def chained(b, h, q_idx, kv_idx):
    return kv_idx < q_idx < 3

whole = fs.Attention(mask=near, scores=[fs.score(lambda score: score * 2)])
by_head = fs.mask(lambda h, q, kv: q - kv < 4 * h)
number = 3
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Every test runs in a folder with the files of a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "helper.py").write_text("WINDOW = 2\n")
    (tmp_path / "mine.py").write_text(USER_FILE)
    (tmp_path / "broken.py").write_text("fine = 1\nx = 1 / 0\n")
    (tmp_path / "syntax.py").write_text("x = (\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "broken.yaml").write_text("kind: [\n")
    (tmp_path / "words.npy").write_bytes(b"no array")
    np.save(tmp_path / "ids.npy", np.array([0, 0, 0, 1, 1, 2, 2, 2]))
    save(causal_window(window=8), "spec.yaml")
    return tmp_path


@fs.mask
def causal_window(q, kv, *, window):
    return (q >= kv) & (q - kv < window)


def run(command, code=0):
    """The output of `flexspec command`; its exit code must be `code`."""
    found = CliRunner().invoke(app, shlex.split(command))
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found.output


def test_patterns_lists_the_catalog():
    listed = json.loads(run("patterns --json"))
    assert [entry["name"] for entry in listed] == [entry.name for entry in CATALOG.values()]
    assert all(set(entry) == {"name", "kind", "family", "example", "meaning"} for entry in listed)
    table = run("patterns")
    assert all(name in table for name in CATALOG)


@pytest.mark.parametrize("example", [entry.example for entry in CATALOG.values() if "(" in entry.example])
def test_every_example_of_the_catalog_is_read(example):
    given = "-p document_id=x" if example == "document()" else ""
    output = CliRunner().invoke(app, ["show", example, "--length", "64", "--json", *shlex.split(given)]).output
    assert json.loads(output).get("error", {}).get("code") not in ("FS050", "FS051", "FS053")


def test_show_draws_in_the_terminal():
    drawn = run("show 'causal_window(window=4)' --length 6 --block-size 2")
    assert " 0 │▓▓··        │\n   │▓▓▓▓        │\n   │████▓▓··    │\n" in drawn
    assert "\x1b[" not in drawn


def test_show_writes_a_picture():
    assert run("show 'causal_window(window=400)' --length 100000 -o mask.png").strip() == "mask.png"
    facts = json.loads(run("show causal --length 1000 --kv-length 500 --block-size 64x32 -o b.svg --json"))
    assert facts["picture"] == "b.svg"
    assert (facts["q_len"], facts["kv_len"], facts["block_size"]) == (1000, 500, [64, 32])
    assert run("show causal --length 5000 -o part.png --region 0:200,0:300").strip() == "part.png"
    for name in ("mask.png", "b.svg", "part.png"):
        assert Path(name).read_bytes()[:4] in (b"\x89PNG", b"<?xm")


def test_show_counts_blocks_as_the_library_does():
    facts = json.loads(run("show 'causal_window(window=300) | sink(3)' --length 4000 --json"))
    made = fs.block_map(fs.mask(lambda q, kv: ((q >= kv) & (q - kv < 300)) | (kv < 3)), 4000)
    assert facts["blocks"] == {kind.name.lower(): count for kind, count in made.counts().items()}
    assert facts["density"] == pytest.approx(made.density)
    assert facts["order"] is None


def test_a_canvas_gives_the_length_and_orders_are_text():
    pattern = "'neighborhood(canvas(h=16, w=16), window=5)'"
    plain = json.loads(run(f"show {pattern} --block-size 16 --json"))
    tiled = json.loads(run(f"show {pattern} --block-size 16 --order 'tiled(h=4, w=4)' --json"))
    assert plain["q_len"] == tiled["q_len"] == 256
    assert tiled["order"] == "tiled(h=4, w=4)"
    assert tiled["density"] != plain["density"]


def test_canvases_of_sides_give_both_lengths_and_orders():
    sides, near = "q: canvas(h=4, w=6); kv: canvas(t=2, h=4, w=6);", "abs(q.w - kv.w) <= 1"
    q_canvas, kv_canvas = fs.Canvas(h=4, w=6), fs.Canvas(t=2, h=4, w=6)
    mask = fs.mask(q_canvas=q_canvas, kv_canvas=kv_canvas)(lambda q, kv: abs(q.w - kv.w) <= 1)
    save(mask, "sides.yaml")
    orders = fs.axes(q_canvas, "w", "h"), fs.axes(kv_canvas, "w", "t", "h")
    wanted = fs.block_map(mask, 24, 48, order=orders, block_size=4).counts()
    for pattern in (f"{sides} {near}", "sides.yaml"):
        shown = json.loads(run(f"show '{pattern}' --block-size 4 --order '(axes(w, h), axes(w, t, h))' --json"))
        assert (shown["q_len"], shown["kv_len"]) == (24, 48)
        assert shown["blocks"] == {kind.name.lower(): count for kind, count in wanted.items()}
    turned = json.loads(run(f"show '{sides} ({near}).T' --json"))
    assert (turned["q_len"], turned["kv_len"]) == (48, 24)


def test_patterns_come_from_files():
    assert json.loads(run("show mine.py:near --length 50 --json"))["pattern"] == "near()"
    assert json.loads(run("show mine.py:mask_mod --length 8 --json"))["pattern"] == "mask_mod"
    assert json.loads(run("show mine.py:whole --length 8 --json"))["q_len"] == 8
    assert json.loads(run("show spec.yaml --length 50 --json"))["q_len"] == 50
    run("check mine.py:near --against 'sliding_window(2)' --length 100")
    run("check spec.yaml --against 'causal_window(8)' --length 100")


def test_values_are_given_by_name():
    for given in ("document_id=0,0,0,1,1,2,2,2", "document_id=ids.npy"):
        drawn = run(f"show 'document()' --length 8 --block-size 1 -p {given}")
        assert " 0 │██████          │" in drawn
    wide = json.loads(run("show mine.py:near --length 50 --block-size 1 -p window=49 --json"))
    assert wide["blocks"]["full"] == 2500


def test_heads_are_chosen():
    drawn = [run(f"show mine.py:by_head --length 6 --block-size 1 --heads 2 --head {head}") for head in (0, 1)]
    assert drawn[0] != drawn[1] and "head 1 of 2" in drawn[1]


def test_explain():
    text = run("explain 'causal_window(window=300)' --length 5000")
    assert all(heading in text for heading in ("SPEC", "EXPR", "SIMPLIFIED", "BLOCKS", "KERNEL", "PROOFS"))
    facts = json.loads(run("explain 'causal_window(window=300)' --length 5000 --json"))
    assert facts["q_len"] == 5000
    assert "\\" in run("explain 'causal_window(window=300)' --length 50 --latex")
    assert run("explain mine.py:whole --length 50")


def test_check_proves_equality():
    one, other = "'causal_window(window=8)'", "'causal() & sliding_window(7)'"
    assert run(f"check {one} --against {other} --length 1000000").startswith("equal")
    found = json.loads(run(f"check {one} --against {other} --length 1000 --kv-length 90 --json"))
    assert found["equal"] is True and found["kv_len"] == 90


def test_check_finds_a_counterexample():
    command = "check 'causal_window(window=8)' --against 'causal() & sliding_window(8)' --length 1000"
    text = run(command, code=1)
    assert text.startswith("different at b=0, h=0, q=8, kv=0")
    assert "kept by      causal() & sliding_window(8)\n  not kept by  causal_window(window=8)" in text
    found = json.loads(run(command + " --json", code=1))
    assert found["counterexample"] == {"b": 0, "h": 0, "q": 8, "kv": 0}
    assert found["kept_by"] == "causal() & sliding_window(8)"
    assert found["region"] == "0:72,0:64"
    see = text.split("see: flexspec ")[1].strip()
    assert run(see).strip() == "mask.png"


def test_check_counts_lists_and_draws_the_difference():
    command = "check 'causal_window(window=3)' --against 'sliding_window(1)' --length 6"
    text = run(command, code=1)
    assert "a implies b: no, b implies a: no" in text
    assert "a  causal_window(window=3)\n     only here: 4 pairs, the first at b=0, h=0, q=2, kv=0" in text
    assert "b  sliding_window(1)\n     only here: 5 pairs, the first at b=0, h=0, q=0, kv=1" in text
    rows = ["··bb        ", "····bb      ", "aa····bb    ", "  aa····bb  ", "    aa····bb", "      aa····"]
    assert [line.split("│")[1] for line in text.splitlines() if line.endswith("│")] == rows
    found = json.loads(run(command + " --json", code=1))
    assert (found["only_pattern"], found["only_against"]) == (4, 5)
    assert not found["pattern_implies_against"] and not found["against_implies_pattern"]
    assert found["regions"][0] | {"only": "pattern"} == {
        "only": "pattern", "b": 0, "h": 0, "q_start": 0, "q_stop": 6, "kv_start": 0, "kv_stop": 6
    }  # fmt: skip


def test_check_says_which_head_differs():
    two_heads = "check mine.py:by_head --against '(q - kv < 4 * h) & (h < 2)' --length 9"
    run(f"{two_heads} --heads 2")
    found = json.loads(run(f"{two_heads} --heads 3 --json", code=1))
    assert found["counterexample"] == {"b": 0, "h": 2, "q": 0, "kv": 0}
    assert found["kept_by"] == "mine.py:by_head"


def test_check_takes_values_that_one_side_reads():
    by_value = "check mine.py:near --against 'sliding_window(3)' --length 40"
    run(by_value, code=1)
    run(by_value + " -p window=3", code=0)


MISTAKES = [
    ("show 'causal('", "FS050"),
    ("show 'causal & & causal' --length 9", "FS050"),
    ("show nope --length 9", "FS051"),
    ("show 'causal_window(window=0)' --length 9", "FS025"),
    ("show 'causal_window(size=3)' --length 9", "FS021"),
    ("show causal", "FS020"),
    ("show causal --length 0", "FS030"),
    ("show causal --length -4", "FS030"),
    ("show causal --length 9 --kv-length 0", "FS030"),
    ("show causal --length 9 --block-size 0", "FS030"),
    ("show causal --length 9 --block-size big", "FS030"),
    ("show causal --length 9 --order 'tiled(t=2)'", "FS033"),
    ("show causal --length 9 --order 'spiral'", "FS051"),
    ("show causal --length 9 --head 1 --heads 0", "FS030"),
    ("show causal --length 9 -p offset=x", "FS023"),
    ("show causal --length 9 -p offset", "FS050"),
    ("show causal --length 9 -p ofset=3", "FS021"),
    ("show 'document()' --length 9", "FS020"),
    ("show 'document()' --length 9 -p document_id=0,1", "FS022"),
    ("show 'document()' --length 9 -p document_id=missing.npy", "FS054"),
    ("show 'document()' --length 9 -p document_id=words.npy", "FS054"),
    ("show causal --length 9 -o a.gif", "FS054"),
    ("show causal --length 9 -o /dev/null/a.png", "FS054"),
    ("show causal --length 9 --region 0:3,0:3", "FS020"),
    ("show causal --length 9 --region 0-3 -o a.png", "FS050"),
    ("show causal --length 9 --region 0:3,0:30 -o a.png", "FS030"),
    ("show causal --length 9000 --region 0:9000,0:3 -o a.png", "FS030"),
    ("show mine.py:mask_mod --length 9", "FS024"),
    ("show mine.py:chained --length 9", "FS005"),
    ("show mine.py:absent --length 9", "FS051"),
    ("show mine.py --length 9", "FS051"),
    ("show mine.py:number --length 9", "FS023"),
    ("show mine.py:by_head --length 9", "FS031"),
    ("show mine.py:by_head --length 9 --heads 2 --head 2", "FS030"),
    ("show missing.py:x --length 9", "FS054"),
    ("show broken.py:x --length 9", "FS052"),
    ("show syntax.py:x --length 9", "FS052"),
    ("show leaves.py:x --length 9", "FS052"),
    ("show missing.yaml --length 9", "FS054"),
    ("show broken.yaml --length 9", "FS052"),
    ("show 'neighborhood(canvas(h=4, w=4), window=3)' --length 9", "FS032"),
    ("explain nope --length 9", "FS051"),
    ("explain causal", "FS020"),
    ("explain 'document()' --length 9", "FS020"),
    ("check nope --against causal --length 9", "FS051"),
    ("check causal --against nope --length 9", "FS051"),
    ("check causal --against causal", "FS020"),
    ("check causal --against mine.py:whole --length 9", "FS023"),
    ("check causal --against causal --length 9 -p other=1", "FS021"),
]


@pytest.mark.parametrize("command, code", MISTAKES)
def test_mistakes(command, code):
    found = CliRunner().invoke(app, shlex.split(command))
    assert found.exit_code == 2 and isinstance(found.exception, SystemExit), found.output
    assert found.stderr.startswith(f"[{code}] ") and not found.stdout
    assert not any(word in found.stderr for word in ("Traceback", "typer", "flexspec/compiler", "test_cli"))
    error = json.loads(run(command + " --json", code=2))["error"]
    assert set(error) == {"code", "message", "fix"} and error["code"] == code and error["message"]


def test_a_mistake_shows_the_text_or_the_users_own_line():
    assert "    causal(\n           ^" in CliRunner().invoke(app, ["show", "causal("]).stderr
    chained = CliRunner().invoke(app, shlex.split("show mine.py:chained --length 9")).stderr
    assert "return kv_idx < q_idx < 3\n" in chained and "^^^^" in chained and "mine.py" in chained
    assert 'File "broken.py", line 2\n    x = 1 / 0' in CliRunner().invoke(app, ["show", "broken.py:x"]).stderr
    absent = CliRunner().invoke(app, ["show", "mine.py:absent"]).stderr
    assert "near" in absent and "mask_mod" in absent and "number" not in absent


def test_fixes_are_in_the_words_of_the_command_line():
    assert "add --heads <count>" in CliRunner().invoke(app, shlex.split("show mine.py:by_head --length 9")).stderr
    assert "add -p document_id=<" in CliRunner().invoke(app, shlex.split("show 'document()' --length 9")).stderr
    assert "`flexspec patterns` lists all" in CliRunner().invoke(app, shlex.split("show nope --length 9")).stderr


@pytest.mark.parametrize("command", ["", "show", "explain", "check", "patterns", "build"])
def test_help_has_examples(command):
    text = run(f"{command} --help")
    assert "Usage" in text
    assert not command or f"flexspec {command}" in text


def test_version():
    assert run("--version").startswith("flexspec ")


def test_wrong_words_are_usage_errors():
    run("show", code=2)
    run("shwo causal", code=2)
    run("show causal --length many", code=2)


@pytest.mark.parametrize("command", ["--help", "--version", "patterns", "patterns --json", "show -h", "plan -h"])
def test_help_the_version_and_the_list_need_no_torch(command):
    code = (
        f"import sys\nfrom flexspec.compiler.cli import app\n"
        f"try:\n    app({command.split()})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'matplotlib', 'triton', 'sympy', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip().endswith("\n[]")
