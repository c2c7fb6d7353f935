"""Backends as values: a third party's, the choice between several, what a repeated call does not do again."""

import pickle
import warnings

import pytest
import torch
from flexspec.compiler import map_cache, pipeline
from flexspec.compiler.backends import flex
from flexspec.compiler.backends.base import Backend, BackendFailed
from flexspec.compiler.backends.reference import REFERENCE
from flexspec.compiler.backends.registry import BACKENDS
from flexspec.compiler.backends.triton import launch
from flexspec.compiler.blocks import tensor_ranges

import flexspec as fs

IDS = torch.arange(90)[None] // 31
TABLE = torch.randn(19)


def qkv(q_len=90, kv_len=None, batch=1, heads=2, dim=16):
    generator = torch.Generator().manual_seed(q_len)
    sizes = (batch, heads, q_len, dim), (batch, heads, kv_len or q_len, dim), (batch, heads, kv_len or q_len, dim)
    return [torch.randn(size, generator=generator) for size in sizes]


def by_rows_backwards(call):
    """A user's own backend: the reference, with a trace that it ran."""
    out, lse = REFERENCE.run(call)
    return -out, lse


MINE = Backend("mine", lambda call: ["odd lengths"] if call.q.shape[2] % 2 else [], by_rows_backwards)


def test_a_backend_of_ones_own_is_one_object():
    q, k, v = qkv()
    attend = fs.compile(fs.causal(), backend=MINE)
    assert torch.equal(attend(q, k, v), -fs.compile(fs.causal(), backend="reference")(q, k, v))
    assert repr(attend) == "compile(causal(), backend=mine)"
    assert "backend mine" in attend.explain(90)
    with pytest.raises(fs.FlexSpecError, match="mine cannot run this: odd lengths") as caught:
        attend(*qkv(91))
    assert caught.value.code == "FS042" and "'reference'" in caught.value.fix


def test_keys_in_pages_are_copied_out_for_a_backend_that_takes_none():
    seen = []
    backend = Backend("seen", lambda call: [], lambda call: (seen.append(call), REFERENCE.run(call))[1])
    pages = torch.randn(4, 8, 2, 16)
    table = torch.tensor([[2, 0, 3, 1]])
    q = torch.randn(1, 2, 5, 16)
    out = fs.compile(fs.causal(offset=20), backend=backend)(q, pages, pages, page_table=table, kv_len=25)
    keys = pages[table[0]].flatten(0, 1)[:25].transpose(0, 1)[None]
    torch.testing.assert_close(
        out.double(), fs.reference_attention(fs.causal(offset=20), q, keys, keys), atol=1e-5, rtol=1e-5
    )
    assert seen[0].page_table is None and seen[0].k.shape == (1, 2, 25, 16)


def fails(call):
    raise BackendFailed("it broke")


def test_where_a_backend_fails_the_next_one_runs_with_one_warning(monkeypatch):
    attend = fs.compile(fs.causal())
    attend.backends = (Backend("broken", lambda call: [], fails), REFERENCE)
    tensors = qkv()
    with pytest.warns(fs.FlexSpecWarning, match="reference runs this, because it broke") as seen:
        out = attend(*tensors)
    assert len(seen) == 1 and seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(attend(*tensors), out)
    with pytest.raises(fs.FlexSpecError, match="broken cannot run this: it broke"):
        fs.compile(fs.causal(), backend=Backend("broken", lambda call: [], fails))(*tensors)


def test_compiled_attention_pickles_with_its_backend():
    attend = pickle.loads(pickle.dumps(fs.compile(fs.causal(), backend="reference", block_size=64)))
    assert attend.backends == (REFERENCE,) and attend.block_size == 64
    assert [each.name for each in BACKENDS] == ["flex", "flash", "blocks", "reference", "triton"]


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_one_attention_serves_batches_one_after_the_other(backend):
    """What is kept of a batch of 1 does not stand for a batch of 3, nor the other way round."""
    attend = fs.compile(fs.document() & fs.causal(), backend=backend, block_size=32)
    for batch in (1, 3, 2, 1):
        tensors = qkv(batch=batch)
        wanted = fs.reference_attention(attend.spec, *tensors, document_id=IDS)
        torch.testing.assert_close(attend(*tensors, document_id=IDS).double(), wanted, atol=2e-5, rtol=2e-5)
        dense = attend.spec.mask.dense(90, batch=batch, document_id=IDS)
        assert attend.block_map(90, batch=batch, document_id=IDS).kept_pairs == int(dense.sum())


SPECS = {
    "causal": (fs.causal(), {}),
    "documents": (fs.causal() & fs.document(), {"document_id": IDS}),
    "a table of the scores": (
        fs.Attention(fs.document(), [lambda score, b, h, q, kv: score + TABLE[(q - kv).clamp(-9, 9) + 9]]),
        {"document_id": IDS},
    ),
    "a table by buckets": (fs.Attention(fs.causal(), [fs.t5_bias(torch.randn(8, 2), max_distance=16)]), {}),
    "a window at the call": (fs.causal_window, {"window": 7}),
}


@pytest.mark.parametrize("backend", ["flex", "triton"])
@pytest.mark.parametrize("name", SPECS)
def test_a_repeated_call_lowers_nothing_and_reads_nothing_back(name, backend, monkeypatch):
    """Tensors taken for a device's, which refuse to be read; the kernels themselves are left out."""
    spec, values = SPECS[name]
    attend = fs.compile(spec, backend=backend, block_size=32)
    tensors = qkv()
    monkeypatch.setattr(flex, "_called", lambda kernel, q, k, v, *rest: torch.zeros_like(q))
    monkeypatch.setattr(launch.Launch, "start", staticmethod(lambda *args, **constants: None), raising=False)
    monkeypatch.setattr("triton.runtime.interpreter.InterpretedFunction.__getitem__", lambda *_: lambda *a, **c: None)
    for module in (map_cache, tensor_ranges):
        monkeypatch.setattr(module, "by_content", lambda tensor: False)
    attend(*tensors, **values)

    def refuse(*args, **kwargs):
        raise AssertionError("a value is read back, or something is lowered again")

    for read in ("cpu", "numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, read, refuse)
    for module, function in ((map_cache, "lower"), (pipeline, "map_of"), (flex, "source_of"), (launch, "values_of")):
        if function != "values_of" or "table" not in name:  # float tensors may be others at each call
            monkeypatch.setattr(module, function, refuse)
    attend(*tensors, **values)


@pytest.mark.slow
def test_no_sequence_of_lengths_and_batches_ends_in_an_error():
    """A code object takes two recompiles here, so that the sequence uses several up."""

    @fs.mask
    def local(q, kv, *, window):
        return (q >= kv) & (q - kv < window)

    attend = fs.compile(local, backend="flex")
    shapes = [(1, 300, 300), (1, 64, 600), (1, 100, 100), (1, 7, 107), (2, 300, 300), (2, 2, 256), (2, 7, 107)]
    with torch._dynamo.config.patch(recompile_limit=2):
        for window, (batch, q_len, kv_len) in enumerate([*shapes, *shapes[::-1]], 17):
            tensors = qkv(q_len, kv_len, batch)
            wanted = fs.reference_attention(local, *tensors, window=window)
            torch.testing.assert_close(attend(*tensors, window=window).double(), wanted, atol=1e-5, rtol=1e-5)


def test_a_view_is_known_by_what_it_looks_into(monkeypatch):
    """On a device nothing is read: a view of a buffer is the same while nobody writes to the buffer."""
    monkeypatch.setattr(tensor_ranges, "by_content", lambda tensor: False)
    buffer = torch.arange(40)
    state = tensor_ranges.state_of(buffer[:30])
    assert tensor_ranges.state_of(buffer[:30]) == state
    assert tensor_ranges.state_of(buffer[1:31]) != state and tensor_ranges.state_of(buffer[:29]) != state
    assert tensor_ranges.state_of(buffer.clone()[:30]) != state
    buffer[35] = 0
    assert tensor_ranges.state_of(buffer[:30]) != state


@pytest.mark.parametrize("name", ["k", "v", "self", "return_lse", "inputs", "page_table"])
def test_a_value_that_no_call_can_give_is_refused_before(name):
    given = fs.Param(name)
    near = fs.mask(lambda q, kv: (q - kv).abs() < given)
    with pytest.raises(fs.FlexSpecError, match="an argument of the call") as caught:
        fs.compile(near)
    assert caught.value.code == "FS021" and "bind it before" in caught.value.fix


def test_scores_whose_integers_pass_32_bits_are_computed_in_64():
    """On CUDA a kernel's positions have 32 bits: what is printed for it says when they must not."""
    far = fs.score(lambda score, q, kv: score + ((q * 100_003 * kv) % 7) * 0.1)
    cuda = torch.device("cuda")
    for score, wide in ((far, True), (fs.score(lambda score, q, kv: score + (q - kv)), False)):
        call = fs.compile(fs.Attention(fs.causal(), [score]), backend="flex").call_of(*qkv(500), False, "logical", {})
        assert flex.needs_wide(call.lowered, call.score, cuda) is wide
        assert flex.needs_wide(call.lowered, call.lowered.mask, cuda) is False
