"""Caches whose slots stand at true positions: rings, half-filled ones, evictions, gathered columns, summary keys."""

import positions_oracle as oracle
import pytest
import torch
from flexspec.compiler import map_cache
from flexspec.compiler.blocks import tensor_ranges
from torch._dynamo.utils import counters

import flexspec as fs
from flexspec.errors import FlexSpecError

HEADS, KEY_HEADS, DIM = 4, 2, 16
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
STEPS = {"blocks": 200, "flex": 200, "reference": 40, "triton": 40}


def sequence(length, batch=1):
    made = torch.Generator().manual_seed(length)
    return [torch.randn(batch, n, length, DIM, generator=made) for n in (HEADS, KEY_HEADS, KEY_HEADS)]


class Cache:
    """Keys and values in slots, and the position of each: [batch, key heads, slots], -1 where there is none."""

    def __init__(self, slots, batch=1, heads=1):
        self.k, self.v = torch.zeros(2, batch, KEY_HEADS, slots, DIM)
        self.positions = torch.full((batch, heads, slots), -1, dtype=torch.int32)

    def write(self, slot, k, v, position):
        self.k[:, :, slot], self.v[:, :, slot], self.positions[..., slot] = k, v, position

    def step(self, attend, q, position, **values):
        at = {"q_positions": torch.tensor([[position]]), "kv_positions": self.positions}
        return attend(q[:, :, position : position + 1], self.k, self.v, **at, **values)


def dense(q, k, v, kept, bias=0.0):
    """Attention of the whole sequence, [batch, heads, length, dim]; kept, bias: [..., length, length]."""
    every = torch.arange(q.shape[2]).expand(*q.shape[:3])
    wide = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
    shape = (*q.shape[:3], q.shape[2])
    return oracle.attention(q, *wide, every, every, kept.expand(shape), torch.as_tensor(bias).expand(shape))


def close(out, wanted):
    torch.testing.assert_close(out.double(), wanted, **TOLERANCE)


@pytest.mark.parametrize("backend", STEPS)
def test_a_ring_buffer_is_a_sliding_cache(backend):
    steps, slots = STEPS[backend], 72
    q, k, v = sequence(steps)
    rows, columns = torch.arange(steps)[:, None], torch.arange(steps)
    slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS).view(-1, 1, 1)
    wanted = dense(q, k, v, (rows >= columns) & (rows - columns < slots), -(rows - columns) * slopes)
    spec = fs.Attention(fs.causal_window(slots), [fs.alibi()])
    attend, cache, graphs = fs.compile(spec, backend=backend, block_size=16), Cache(slots), []
    for step in range(steps):
        cache.write(step % slots, k[:, :, step], v[:, :, step], step)
        close(cache.step(attend, q, step), wanted[:, :, step : step + 1])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1], "a step compiled something"
    assert len(attend._cache._lowered) <= 32, "maps pile up"


@pytest.mark.parametrize("backend", STEPS)
def test_a_static_cache_fills_up(backend):
    steps, slots = STEPS[backend], 300
    q, k, v = sequence(steps)
    rows, columns = torch.arange(steps)[:, None], torch.arange(steps)
    wanted = dense(q, k, v, rows >= columns)
    attend, cache, graphs = fs.compile(fs.everything(), backend=backend, block_size=16), Cache(slots), []
    for step in range(steps):
        cache.write(step, k[:, :, step], v[:, :, step], step)
        close(cache.step(attend, q, step), wanted[:, :, step : step + 1])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]
    empty = attend.block_map(1, slots, q_positions=torch.tensor([[0]]), kv_positions=cache.positions).counts()[0]
    assert empty == 19 - -(-steps // 16), "empty slots are blocks that nobody visits"


def test_a_prompt_is_one_call_and_its_tokens_follow():
    """Chunks of queries against a cache that they are part of, batches at different positions."""
    q, k, v = sequence(64, batch=2)
    late = torch.tensor([0, 9])
    rows, columns = torch.arange(64)[:, None], torch.arange(64)
    wanted = dense(q, k, v, (rows >= columns) & (columns >= late[:, None, None])[:, None])
    for backend in STEPS:
        attend, cache = fs.compile(fs.causal(), backend=backend, block_size=16), Cache(80, batch=2)
        for start, stop in ((0, 40), (40, 41), (41, 54), (54, 64)):
            part = torch.arange(start, stop)
            at = torch.where(part >= late[:, None], part, -1)  # left padding of the second sequence
            cache.write(slice(start, stop), k[:, :, start:stop], v[:, :, start:stop], at[:, None].int())
            out = attend(q[:, :, start:stop], cache.k, cache.v, q_positions=at, kv_positions=cache.positions)
            there = (at >= 0)[:, None, :, None]
            close(out * there, wanted[:, :, start:stop] * there)
            assert not (out * ~there).any()


@pytest.mark.parametrize("backend", ["blocks", "triton"])
def test_sinks_and_a_window_that_keep_their_positions(backend):
    """StreamingLLM: the first keys stay, the others are a ring. Its mask is that of the whole sequence."""
    steps, sink, window = 60, 4, 20
    q, k, v = sequence(steps)
    rows, columns = torch.arange(steps)[:, None], torch.arange(steps)
    wanted = dense(q, k, v, (rows >= columns) & ((rows - columns < window) | (columns < sink)))
    attend, cache = fs.compile(fs.sink_window(sink, window), backend=backend, block_size=16), Cache(sink + window)
    for step in range(steps):
        slot = step if step < sink else sink + (step - sink) % window
        cache.write(slot, k[:, :, step], v[:, :, step], step)
        close(cache.step(attend, q, step), wanted[:, :, step : step + 1])


@pytest.mark.parametrize("backend", ["blocks", "triton", "flex"])
def test_each_key_head_evicts_keys_of_its_own(backend):
    """As in H2O: the key with the least weight so far makes room; what a head dropped is dropped for good."""
    steps, slots = 48, 24
    q, k, v = sequence(steps)
    attend, cache = fs.compile(fs.causal(), backend=backend, block_size=16), Cache(slots, heads=KEY_HEADS)
    weight, alive = torch.zeros(KEY_HEADS, slots), torch.zeros(1, KEY_HEADS, steps, dtype=torch.bool)
    heads = torch.arange(KEY_HEADS)
    for step in range(steps):
        slot = torch.full((KEY_HEADS,), step) if step < slots else weight.argmin(-1)
        dropped = cache.positions[0, heads, slot]
        alive[0, heads[dropped >= 0], dropped[dropped >= 0].long()] = False
        cache.k[0, heads, slot], cache.v[0, heads, slot] = k[0, :, step], v[0, :, step]
        cache.positions[0, heads, slot], weight[heads, slot], alive[..., step] = step, 0.0, True
        out = cache.step(attend, q, step)
        kept = alive.repeat_interleave(HEADS // KEY_HEADS, 1)[:, :, None].expand(1, HEADS, steps, steps)
        close(out, dense(q, k, v, kept)[:, :, step : step + 1])
        of_group = q[0, ::2, step]
        weight += torch.where(cache.positions[0] >= 0, (of_group[:, None] * cache.k[0]).sum(-1), 0.0).exp()


def test_gathered_columns():
    """Vertical columns of each head, gathered: attention to these keys alone, causal as they truly stand."""
    length, count = 100, 30
    q, k, v = sequence(length)
    columns = torch.stack([torch.randperm(length)[:count].sort().values for _ in range(KEY_HEADS)])
    picked = [torch.take_along_dim(x, columns[None, :, :, None], 2) for x in (k, v)]
    chosen = torch.zeros(KEY_HEADS, length, dtype=torch.bool).scatter_(1, columns, True)
    causal = torch.arange(length)[:, None] >= torch.arange(length)
    wanted = dense(q, k, v, causal & chosen.repeat_interleave(HEADS // KEY_HEADS, 0)[:, None])
    for backend in STEPS:
        out = fs.compile(fs.causal(), backend=backend, block_size=16)(q, *picked, kv_positions=columns[None])
        close(out, wanted)


def test_summary_keys_have_positions_of_their_own_segment():
    """A window of tokens, and one summary key for each chunk that is complete: the summaries stand after all tokens."""
    length, chunk, window = 96, 8, 12
    count = length // chunk
    q, k, v = sequence(length + count)
    tokens = length

    @fs.mask
    def compressed(q, kv):
        near = (q >= kv) & (q - kv < window)
        complete = ((kv - tokens + 1) * chunk <= q) & (kv >= tokens)
        return ((kv < tokens) & near) | complete

    rows, columns = torch.arange(length)[:, None], torch.arange(length + count)
    kept = torch.where(
        columns < length, (rows >= columns) & (rows - columns < window), (columns - length + 1) * chunk <= rows
    )
    wide = (x.repeat_interleave(2, 1) for x in (k, v))
    every = torch.arange(length + count).expand(1, HEADS, -1)
    whole = torch.cat([kept, torch.zeros(count, length + count, dtype=torch.bool)])
    wanted = oracle.attention(q, *wide, every, every, whole)
    now = 70  # a decode step: the last tokens of a ring, and the summaries that there are
    slots = torch.cat([torch.arange(now - window + 1, now + 1).roll(5), length + torch.arange(now // chunk)])
    for backend in STEPS:
        attend = fs.compile(compressed, backend=backend, block_size=16)
        out = attend(q[:, :, :length], k, v)  # the summaries appended: they stand where they are
        close(out, wanted[:, :, :length])
        at = {"q_positions": torch.tensor([[now]]), "kv_positions": slots[None]}
        close(attend(q[:, :, now : now + 1], k[:, :, slots], v[:, :, slots], **at), wanted[:, :, now : now + 1])


def test_documents_of_the_whole_sequence_are_looked_up():
    steps, slots = 90, 32
    q, k, v = sequence(steps)
    ids = (torch.arange(steps) // 20)[None]
    rows, columns = torch.arange(steps)[:, None], torch.arange(steps)
    wanted = dense(q, k, v, (rows >= columns) & (ids[0][:, None] == ids[0]) & (rows - columns < slots))
    for backend in ("triton", "flex"):
        attend, cache = fs.compile(fs.causal() & fs.document(), backend=backend, block_size=16), Cache(slots)
        for step in range(steps):
            cache.write(step % slots, k[:, :, step], v[:, :, step], step)
            close(cache.step(attend, q, step, document_id=ids), wanted[:, :, step : step + 1])


def test_triton_kernels_of_all_steps_are_the_same(monkeypatch):
    """New positions are new arguments: no function is generated for them."""
    from flexspec.compiler.backends.triton import functions

    made = []
    real = functions.module_of
    monkeypatch.setattr(functions, "module_of", lambda *args: (made.append(args), real(*args))[1])
    functions.functions.cache_clear()
    q, k, v = sequence(30)
    attend, cache = fs.compile(fs.causal_window(12), backend="triton", block_size=16), Cache(64)
    for step in range(30):
        cache.write(step, k[:, :, step], v[:, :, step], step)
        cache.step(attend, q, step)
    assert len(made) == 1


def test_a_step_reads_only_what_changed(monkeypatch):
    """Documents of the whole sequence stay as they are; on a device each reading would wait."""
    from flexspec.compiler.blocks import tensor_ranges

    read = []
    real = tensor_ranges.as_array
    monkeypatch.setattr(tensor_ranges, "as_array", lambda tensor: (read.append(tensor.numel()), real(tensor))[1])
    q, k, v = sequence(12)
    ids = torch.zeros(1, 5000, dtype=torch.int64)
    attend, cache = fs.compile(fs.causal() & fs.document(), backend="blocks", block_size=16), Cache(64)
    for step in range(12):
        cache.write(step, k[:, :, step], v[:, :, step], step)
        cache.step(attend, q, step, document_id=ids)
    assert read.count(5000) == 1 and read.count(64) == 12


def test_a_refused_call_leaves_no_trace_in_the_next(monkeypatch):
    """As on a device, where a tensor is told by its identity, which one that is made later may have again."""
    for module in (map_cache, tensor_ranges):
        monkeypatch.setattr(module, "by_content", lambda tensor: False)
    monkeypatch.setattr(tensor_ranges, "as_array", lambda tensor: tensor.numpy().copy())
    attend, (q, k, v) = fs.compile(fs.causal(), backend="blocks", block_size=16), sequence(64)
    wanted = attend(q, k, v)
    for _ in range(20):
        with pytest.raises(FlexSpecError, match="FS036"):
            attend(q, k, v, kv_positions=torch.tensor([[3] * 64]))
        torch.testing.assert_close(attend(q, k, v, kv_positions=torch.tensor([[*range(64)]])), wanted)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_pattern_may_hold_tensors_that_are_called_as_positions_are(compiled):
    q_positions, kv_positions = torch.randn(40), torch.arange(40) % 3
    spec = fs.Attention(
        fs.mask(lambda kv: kv_positions[kv] == 0), [fs.score(lambda score, q, kv: score + q_positions[kv] * (q - kv))]
    )
    at, (q, k, v) = torch.randperm(40, generator=torch.Generator().manual_seed(1))[None, :30], sequence(30)
    attend = fs.compile(spec, backend="blocks", block_size=16)
    attend = torch.compile(attend, backend="aot_eager", fullgraph=True) if compiled else attend
    k_wide, v_wide = (x.repeat_interleave(HEADS // KEY_HEADS, 1).double() for x in (k, v))
    for _ in range(2):
        bias = q_positions[at[0]] * (at[0][:, None] - at[0])
        scores = (q.double() @ k_wide.mT / DIM**0.5 + bias).masked_fill(kv_positions[at[0]] != 0, -torch.inf)
        close(attend(q, k, v, q_positions=at, kv_positions=at), scores.softmax(-1) @ v_wide)
        kv_positions.copy_(kv_positions.roll(1))
