"""`flexspec plan`: the table, its JSON, canvases as they are typed, and mistakes."""

from __future__ import annotations

import json
import shlex

import pytest
from flexspec.compiler.cli import app
from typer.testing import CliRunner

import flexspec as fs

NEAR = "'neighborhood(window=3)'"
SMALL = "--canvas 4x6x5 --block-size 4 --block-size 8x4"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")


def run(command, code=0):
    found = CliRunner().invoke(app, shlex.split(f"plan {command}"))
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found.output


def test_the_table():
    text = run(f"{NEAR} {SMALL} --top 3 --heads 2")
    assert text.startswith("neighborhood(window=3): 120 x 120 tokens, 2 x 128, h100")
    lines = text.splitlines()
    assert lines[1].split() == ["order", "block", "computed", "partial", "density", "bound", "estimate", "ms"]
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]


def test_json_is_what_the_planner_says():
    found = json.loads(run(f"{NEAR} {SMALL} --top 2 --hardware a100 --head-dim 64 --json"))
    canvas = fs.Canvas(t=4, h=6, w=5)
    wanted = fs.plan(fs.neighborhood(canvas, window=3), block_sizes=[4, (8, 4)], hardware="a100", head_dim=64)
    assert found["plans"] == [plan.facts() for plan in wanted[:2]]
    assert found["tried"] == len(wanted) and found["hardware"] == "a100" and found["head_dim"] == 64


def test_a_pattern_with_a_canvas_of_its_own():
    own = "'neighborhood(canvas(t=4, h=6, w=5), window=3)'"
    there = json.loads(run(f"{own} --block-size 4 --json"))
    both = json.loads(run(f"{own} --canvas 4x6x5 --block-size 4 --json"))
    assert there["plans"] == both["plans"] == json.loads(run(f"{NEAR} --canvas 4x6x5 --block-size 4 --json"))["plans"]
    assert "FS032" in run(f"{own} --canvas 4x6", code=2)


def test_a_plain_sequence_and_values():
    found = json.loads(run("'causal_window(window)' -p window=9 --length 100 --block-size 16 --json"))
    assert found["plans"][0]["order"] is None and found["plans"][0]["blocks"] == 13
    assert "row_major" in run("'causal' --canvas 4x6 --block-size 4 --top 1")


def test_a_file_with_heads(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import flexspec as fs\nvideo = fs.Canvas(t=4, h=8)\n"
        "heads = fs.per_head([fs.axial(video, 't'), fs.axial(video, 'h')])\n"
    )
    text = run("mine.py:heads --heads 2 --block-size 4")
    assert "heads 0: axes(h, t) in blocks of 4 x 4" in text and "heads 1: row_major" in text
    found = json.loads(run("mine.py:heads --heads 2 --block-size 4 --json"))
    assert [group["heads"] for group in found["by_head"]] == [[0], [1]]
    assert "FS022" in run("mine.py:heads --heads 3", code=2)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{NEAR} --canvas 4x", "FS032"),
        (f"{NEAR} --canvas 1x2x3x4", "FS032"),
        (f"{NEAR} --canvas 4x0", "FS032"),
        (f"{NEAR} {SMALL} --hardware abacus", "FS041"),
        (f"{NEAR} --canvas 4x6 --length 24", "FS021"),
        (f"{NEAR} --length 24", "FS020"),
        (f"{NEAR} --canvas 4x6 --block-size 0", "FS030"),
        (f"{NEAR} --canvas 4x6 --head-dim 0", "FS030"),
        ("'neighborhod(window=3)' --canvas 4x6", "FS051"),
        ("causal --length 24 -p window=3", "FS021"),
    ],
)
def test_mistakes(command, code):
    assert f"[{code}]" in run(command, code=2)
    assert json.loads(run(f"{command} --json", code=2))["error"]["code"] == code
