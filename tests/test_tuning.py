"""Configurations chosen by timing, with a timer of the test: the interpreter is never timed."""

import itertools
import json
import threading

import pytest
import torch
import triton
from flexspec.compiler.backends.quantised import KEYS
from flexspec.compiler.backends.triton import forward, launch, tuning
from flexspec.compiler.backends.triton.configs import Config, config_of
from flexspec.compiler.backends.triton.functions import write
from flexspec.compiler.blocks.grid import Grid
from test_aot import output, started
from test_triton import DEVICE, qkv, same_as_reference
from test_triton_backward import same_gradients

import flexspec as fs


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEXSPEC_CACHE", str(tmp_path))
    return tmp_path / "tuned"


class Timer:
    """Says that the config `best` is the fastest; remembers what it was asked."""

    def __init__(self, best, too_large=()):
        self.best, self.too_large, self.asked, self.now = best, too_large, [], None

    def launch(self, config):
        if config in self.too_large:
            raise triton.runtime.errors.OutOfResources(1, 0, "shared memory")
        self.now = config

    def __call__(self, launch):
        launch()
        self.asked.append(self.now)
        return 1.0 if self.now == self.best else 2.0


def choice(timer, mask=None, dtype=torch.float32, q_len=300, read=None):
    """The forward kernel's configuration for a call that no one made before."""
    q, k, v = qkv(q_len, 200, heads=4, kv_heads=2, dtype=dtype)
    attend = fs.compile(fs.causal() if mask is None else mask, backend="triton", autotune=True)
    plan = launch.launch_of(attend.call_of(q, k, v, False, "logical", {}))
    assert plan.autotune
    functions = plan.functions[:2]
    return tuning.chosen(timer.launch, forward.forward, plan, q, v, functions, timer, read)


BEST = Config(64, 32, 4, 3)


def test_the_fastest_is_kept_and_read_again(folder):
    first, later = Timer(BEST), Timer(None)
    assert choice(first) == BEST and len(first.asked) == len(set(first.asked)) > 10
    (path,) = folder.iterdir()
    kept = json.loads(path.read_text())
    assert kept["best"] == BEST._asdict() and kept["of"]["dtype"] == "torch.float32"
    assert {"torch", "triton", "gpu", "functions"} <= kept["of"].keys()
    assert kept["timed"][0] == {**BEST._asdict(), "milliseconds": 1.0} and len(kept["timed"]) == len(first.asked)
    assert choice(later) == BEST and not later.asked


def test_candidates_with_flaws_are_not_timed(folder):
    """But for the table's own, which nothing chosen may be slower than; the file says why."""
    flaws, timer = {}, Timer(BEST)

    def read(config):
        found = ["products 1.50", "local 9"] if config.warps == 8 else []
        flaws[config] = found
        return found

    assert choice(timer, read=read) == BEST
    first, *others = flaws
    assert first == timer.asked[0] == config_of("forward", "", Grid(300, 200, 128, 128), *qkv(300, 200)[::2])
    assert first.warps == 8 and timer.asked == [first, *(one for one in others if not flaws[one])]
    (path,) = folder.iterdir()
    passed_over = [{**one._asdict(), "flaws": flaws[one]} for one in others if flaws[one]]
    assert json.loads(path.read_text())["passed over"] == passed_over != []
    again = Timer(None)
    assert choice(again, read=None) == BEST and not again.asked


def test_where_all_have_flaws_all_are_timed(folder):
    timer, asked = Timer(BEST), []
    assert choice(timer, read=lambda config: asked.append(config) or ["wait 0"]) == BEST
    assert timer.asked == asked and BEST in asked
    (path,) = folder.iterdir()
    assert json.loads(path.read_text())["passed over"] == []


READ = """
import itertools, json, flexspec as fs
from flexspec.compiler.backends.triton import tuning
from flexspec.compiler.backends.triton.configs import Config
real, costs = tuning.candidates, itertools.count(0, -1)
more = Config(128, 128, 8, 3, 128), Config(64, 64, 4, 3), Config(64, 64, 4, 2), Config(128, 128, 4, 9)
tuning.candidates = lambda kernel, grid, first: [first, *more]
tuning.timer_on = lambda device, kernel: lambda start: next(costs)
attend = fs.compile(fs.causal(), backend="triton", autotune=True)
attend.aot("sm_90", head_dim=64, backward=False)
"""


def test_candidates_are_compiled_and_read(folder):
    """By the compiler, for an sm_90, as autotuning does before it times; the timer is the test's."""
    output(started("-c", READ, FLEXSPEC_CACHE=str(folder.parent)))
    (path,) = folder.iterdir()
    found = json.loads(path.read_text())
    assert [one["block_n"] for one in found["timed"]] == [64, 64] and found["best"]["warps"] == 4
    squeezed, shallow, deep = found["passed over"]
    assert (squeezed["block_m"], squeezed["block_n"]) == (128, 128)
    assert {flaw[:3] for flaw in squeezed["flaws"]} == {"C75", "loc"}  # serialized, and through memory
    assert shallow["flaws"] == ["wait 0"] and deep["stages"] == 9 and "no block fits" in deep["flaws"]


def test_each_kind_of_call_is_timed(folder):
    choice(Timer(BEST))
    for count, other in enumerate([{"dtype": torch.bfloat16}, {"mask": fs.sliding_window(9)}, {"q_len": 600}], 2):
        timer = Timer(BEST)
        choice(timer, **other)
        assert timer.asked and len(list(folder.iterdir())) == count
    near = Timer(BEST)
    choice(near, q_len=301)
    assert not near.asked


@pytest.mark.parametrize("text", ["", "[]", '{"best": {"block_m": 64}}', '{"best": null}'])
def test_files_that_cannot_be_read_are_made_anew(folder, text):
    choice(Timer(BEST))
    (path,) = folder.iterdir()
    path.write_text(text)
    again = Timer(BEST)
    assert choice(again) == BEST and again.asked and json.loads(path.read_text())["best"] == BEST._asdict()


def test_tiles_that_do_not_divide_the_blocks_are_never_taken(folder):
    choice(Timer(BEST))
    (path,) = folder.iterdir()
    wrong = BEST._replace(block_n=48)
    path.write_text(json.dumps({"best": wrong._asdict()}))
    assert choice(Timer(BEST)) == BEST


def test_configurations_that_the_gpu_cannot_hold_are_passed_over():
    grid, (q, _, v) = Grid(300, 200, 128, 128), qkv(300, 200)
    first = config_of("forward", "", grid, q, v)
    every = tuning.candidates("forward", grid, first)
    assert choice(Timer(BEST, too_large=every[:-1])) == every[-1]
    assert choice(Timer(BEST, too_large=every), mask=fs.everything()) == first


@pytest.mark.parametrize("kernel", ["forward", "low_precision", "backward_q", "backward_kv", "decode"])
@pytest.mark.parametrize("block_size", [(128, 128), (16, 64), (48, 96)])
def test_candidates_divide_the_blocks(kernel, block_size):
    grid, (q, _, v) = Grid(500, 500, *block_size), qkv(1)
    q = q.to(torch.int8) if kernel == "low_precision" else q
    first = config_of(kernel, "sm_90", grid, q, v)
    each = tuning.candidates(kernel, grid, first)
    assert each[0] == first and len(each) == len(set(each)) >= 4
    for config in each:
        assert config.block_n >= 16 and block_size[1] % config.block_n == 0
        assert kernel != "low_precision" or config.block_n <= KEYS  # of one scale
        assert kernel == "decode" or (config.block_m >= 16 and block_size[0] % config.block_m == 0)


def test_files_appear_whole(tmp_path):
    path, text = tmp_path / "a" / "b.json", json.dumps({"x": "y" * 100_000})
    writers = [threading.Thread(target=lambda: [write(path, text) for _ in range(20)]) for _ in range(4)]
    for each in writers:
        each.start()
    while any(each.is_alive() for each in writers):
        assert not path.exists() or path.read_text() == text
    assert [each.name for each in path.parent.iterdir()] == ["b.json"]


@pytest.fixture
def every_tile_runs(monkeypatch):
    """All candidates run, and the last one is the fastest."""
    ran = []

    def timer_on(device, kernel):
        costs = itertools.count(0, -1)
        return lambda launch: (launch(), ran.append(kernel.fn.__name__), next(costs))[2]

    monkeypatch.setattr(tuning, "timer_on", timer_on)
    real = fs.compile
    monkeypatch.setattr(
        fs, "compile", lambda *args, **named: real(*args, autotune=named["backend"] == "triton", **named)
    )
    return ran


@pytest.mark.parametrize("q_len", [70, 3])
def test_every_candidate_computes_the_same(every_tile_runs, q_len):
    same_as_reference(fs.sink_window(sink=3, window=20), *qkv(q_len, 200, batch=1), block_size=32)
    assert set(every_tile_runs) == {"forward" if q_len > 16 else "decode"}


def test_every_candidate_of_low_precision_computes_the_same(every_tile_runs):
    q, k, v = qkv(70, 200, batch=1)
    wanted = fs.compile(fs.causal(130), precision="fp8", backend="reference")(q, k, v)
    found = fs.compile(fs.causal(130), precision="fp8", backend="triton", block_size=128)(q, k, v)
    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)
    assert set(every_tile_runs) == {"low_precision"} and len(every_tile_runs) > 5


def test_gradients_do_not_add_up_over_the_timings(every_tile_runs):
    same_gradients(fs.causal_window(20), *qkv(40, batch=1, heads=2, kv_heads=1), block_size=32)
    assert set(every_tile_runs) == {"forward", "backward_q", "backward_kv"}
    q, k, v = qkv(40, batch=1)
    found = []
    for backend in ("triton", "reference"):
        table = torch.linspace(0, 1, 42, device=DEVICE).view(2, 21).requires_grad_()
        spec = fs.Attention(fs.causal(), [fs.relative_bias(table)])
        fs.compile(spec, backend=backend, block_size=32)(q, k, v).square().sum().backward()
        found.append(table.grad)
    torch.testing.assert_close(*found, atol=2e-4, rtol=2e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there kernels are timed")
def test_the_interpreter_is_never_timed(folder):
    q, k, v = qkv(40)
    plain, tuned = (fs.compile(fs.causal(), backend="triton", autotune=each) for each in (False, True))
    torch.testing.assert_close(plain(q, k, v), tuned(q, k, v), atol=0, rtol=0)
    assert not folder.exists()


def test_other_backends_have_nothing_to_time():
    with pytest.raises(fs.FlexSpecError, match="FS042.*autotune.*'auto'"):
        fs.compile(fs.causal(), autotune=True)
