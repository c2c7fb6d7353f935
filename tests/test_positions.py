"""True positions: calls whose rows stand elsewhere give what attention over the whole sequence gives, keys dropped."""

import positions_oracle as oracle
import pytest
import torch
from flexspec.compiler.blocks.on_device import DeviceMap
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import block_kinds, make_mask, masks, tables
from torch._dynamo.utils import counters

import flexspec as fs
from flexspec.errors import FlexSpecError

BATCH, HEADS, KEY_HEADS, WHOLE, DIM = 2, 4, 2, 150, 16
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
BACKENDS = ("reference", "blocks", "triton", "flex")
IDS = torch.randint(0, 4, (BATCH, WHOLE), generator=torch.Generator().manual_seed(3))
Q, K = torch.arange(WHOLE)[:, None], torch.arange(WHOLE)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole_qkv(length=WHOLE, heads=HEADS, kv_heads=KEY_HEADS, batch=BATCH):
    return tuple(drawn(batch, n, length, DIM, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads)))


def scattered(rows, *leading, whole=WHOLE, seed=0, holes=0.2):
    """Distinct positions in any order, some of them negative: [*leading, rows]."""
    made = torch.Generator().manual_seed(seed)
    count = torch.Size(leading).numel()
    each = torch.stack([torch.randperm(whole, generator=made)[:rows] for _ in range(count)])
    return torch.where(torch.rand(count, rows, generator=made) < holes, -1 - each, each).view(*leading, rows)


def same(attend, whole, q_positions, kv_positions, kept, bias=None, **values):
    """The call with rows at positions, against the oracle."""
    q, k, v = whole
    batch, heads, few = q.shape[0], q.shape[1], k.shape[1]
    q_at, kv_at = (oracle.heads_of(p, batch, heads) for p in (q_positions, kv_positions))
    of_keys = kv_at[:, :: heads // few]
    rows = oracle.gathered(q, q_at), oracle.gathered(k, of_keys), oracle.gathered(v, of_keys)
    out = attend(*rows, q_positions=q_positions, kv_positions=kv_positions, **values)
    wide = (x.repeat_interleave(heads // few, 1) for x in (k, v))
    torch.testing.assert_close(out.double(), oracle.attention(q, *wide, q_at, kv_at, kept, bias), **TOLERANCE)
    return out


def same_documents():
    return (IDS[:, :, None] == IDS[:, None, :])[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("leading", [(1,), (2,), (2, 1), (2, 2), (1, 2)])
def test_masks_and_scores_speak_of_true_positions(backend, leading):
    spec = fs.Attention(fs.causal() & (fs.document() | fs.sliding_window(20)), [fs.alibi()])
    kept = (Q >= K) & (same_documents() | ((Q - K).abs() <= 20))
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]).view(1, -1, 1, 1)
    attend = fs.compile(spec, backend=backend, block_size=16)
    q_positions, kv_positions = scattered(9, 2, seed=1), scattered(70, *leading, seed=2)
    same(attend, whole_qkv(), q_positions, kv_positions, kept, -(Q - K).abs() * slopes, document_id=IDS)


def test_each_query_head_may_have_positions_of_its_own():
    attend = fs.compile(fs.causal(), backend="triton", block_size=16)
    same(
        attend,
        whole_qkv(kv_heads=HEADS),
        scattered(40, 2, 4, seed=1),
        scattered(70, 1, 4, seed=2),
        (Q >= K)[None, None],
    )


@settings(max_examples=80, deadline=None)
@given(
    masks, st.integers(1, 40), st.integers(1, 60), st.sampled_from([(1,), (2,), (2, 3), (1, 3)]), st.integers(0, 999)
)
def test_random_masks_at_random_positions(written, q_rows, kv_rows, leading, seed):
    whole = 64
    held = tables(whole, 2, 3, seed)
    mask = make_mask(written, held)
    dense = mask.dense(whole, batch=2, heads=3)
    q_positions, kv_positions = (
        scattered(rows, *leading, whole=whole, seed=seed + i) for i, rows in enumerate((q_rows, kv_rows))
    )
    at = [oracle.heads_of(p, 2, 3) for p in (q_positions, kv_positions)]
    there = (at[0] >= 0)[..., None] & (at[1] >= 0)[..., None, :]
    rows = torch.take_along_dim(dense, at[0].clamp(min=0)[..., None], 2)
    kept = torch.take_along_dim(rows, at[1].clamp(min=0)[..., None, :], 3) & there
    attend, values = fs.compile(mask, block_size=(8, 5)), {"q_positions": q_positions, "kv_positions": kv_positions}
    found = attend.block_map(q_rows, kv_rows, batch=2, heads=3, **values)
    pairs = torch.stack(
        [torch.stack([found.tokens(0, q_rows, 0, kv_rows, b=b, h=h) for h in range(3)]) for b in range(2)]
    )
    assert torch.equal(pairs, kept)
    wanted = block_kinds(kept, 8, 5)
    assert torch.equal(found.kinds().expand_as(wanted), wanted)
    bounded = fs.compile(mask, block_size=(8, 5), exact=False).block_map(q_rows, kv_rows, batch=2, heads=3, **values)
    bounds = bounded.kinds().expand_as(wanted)
    assert torch.equal(bounds[bounds != 1], wanted[bounds != 1])


def test_large_positions():
    """Far past the call's lengths, up to the last one that there is."""
    far = 2**31 - 1
    keys = torch.tensor([[far - 5, far, 3, -1, far - 100_000, 100_000]])
    kept = (far - keys < 100) & (keys >= 0)
    mask = fs.mask(lambda q, kv: (q >= kv) & (q - kv < 100) & (kv // 7 >= 0))
    q, k, v = drawn(1, 2, 1, 16), drawn(1, 2, 6, 16), drawn(1, 2, 6, 16)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept.expand(1, 6))
    for backend in BACKENDS:
        attend = fs.compile(mask, backend=backend, block_size=16)
        out = attend(q, k, v, q_positions=torch.tensor([[far]]), kv_positions=keys)
        torch.testing.assert_close(out, wanted, **TOLERANCE)


@pytest.mark.parametrize("backend", ["blocks", "triton", "reference"])
def test_gradients(backend):
    q, k, v = (x.double().requires_grad_() for x in whole_qkv(kv_heads=HEADS))
    q_at, kv_at = scattered(20, 2, seed=1), scattered(50, 2, 4, seed=2)
    each = oracle.heads_of(q_at, 2, 4), oracle.heads_of(kv_at, 2, 4)
    dout = drawn(2, 4, 20, DIM, seed=9).double()
    kept = ((Q >= K) & (Q - K < 90))[None, None]
    wanted = torch.autograd.grad(oracle.attention(q, k, v, *each, kept), (q, k, v), dout)
    rows = oracle.gathered(q, each[0]), oracle.gathered(k, each[1]), oracle.gathered(v, each[1])
    attend = fs.compile(fs.causal_window(90), backend=backend, block_size=16)
    out = attend(*(x.float() for x in rows), q_positions=q_at, kv_positions=kv_at)
    found = torch.autograd.grad(out, (q, k, v), dout.float())
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["flex", "triton", "reference"])
def test_lse_and_rows_without_a_query(backend):
    attend = fs.compile(fs.causal(), backend=backend, block_size=16)
    q, k, v = whole_qkv(3, 2, 2, 1)
    out, lse = attend(
        q, k, v, q_positions=torch.tensor([[-1, 0, 9]]), kv_positions=torch.tensor([[4, -3, 8]]), return_lse=True
    )
    assert not out[:, :, :2].any() and (lse[:, :, :2] == -torch.inf).all()
    scores = (q[:, :, 2:] @ k[:, :, ::2].mT / 4).logsumexp(-1)
    torch.testing.assert_close(lse[:, :, 2:], scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["blocks", "triton"])
def test_inside_a_compiled_model(backend):
    attend = fs.compile(fs.causal() & fs.document(), backend=backend, block_size=16)
    model = torch.compile(lambda *qkv, **at: attend(*qkv, **at).sin(), backend="aot_eager", fullgraph=True)
    q, k, v = (x[:, :, :20].clone().requires_grad_() for x in whole_qkv())
    at = {"q_positions": scattered(20, 2, seed=1), "kv_positions": scattered(20, 1, 2, seed=2), "document_id": IDS}
    mine, theirs = model(q, k, v, **at), attend(q, k, v, **at).sin()
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(*(torch.autograd.grad(out.sum(), (q, k, v)) for out in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_pages_with_positions():
    q, k, v = (x[:1, :, :30] for x in whole_qkv())
    at = {"q_positions": torch.tensor([[40]]), "kv_positions": scattered(30, 1, whole=40)}
    pages = [x[0].transpose(0, 1).reshape(5, 6, 2, DIM)[[3, 0, 4, 1, 2]] for x in (k, v)]
    table = torch.tensor([[1, 3, 4, 0, 2]])
    for backend in ("triton", "blocks"):
        attend = fs.compile(fs.causal_window(25), backend=backend, block_size=16)
        paged = attend(q[:, :, :1], *pages, page_table=table, kv_len=30, **at)
        torch.testing.assert_close(paged, attend(q[:, :, :1], k, v, **at), **TOLERANCE)


def test_the_functions_take_positions_too():
    q_at, kv_at = scattered(40, 2, seed=1), scattered(70, 2, 2, seed=2)
    at = {"q_positions": q_at, "kv_positions": kv_at, "document_id": IDS}
    spec = fs.Attention(fs.causal() & fs.document(), [fs.alibi()])
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / HEADS) for head in range(HEADS)]).view(1, -1, 1, 1)
    kept = (Q >= K) & same_documents()
    same(
        lambda *qkv, **at: fs.reference_attention(spec, *qkv, **at),
        whole_qkv(),
        q_at,
        kv_at,
        kept,
        -(Q - K).abs() * slopes,
        document_id=IDS,
    )
    mine = fs.block_map(spec.mask, 40, 70, batch=2, heads=4, block_size=16, **at).kinds()
    assert torch.equal(mine, fs.compile(spec.mask, block_size=16).block_map(40, 70, batch=2, heads=4, **at).kinds())
    for call in (
        lambda: fs.block_map(fs.causal(), 40, 70, kv_positions=kv_at.clamp(min=0)),
        lambda: fs.reference_attention(
            fs.causal(), *(x[:, :, :70] for x in whole_qkv()), kv_positions=kv_at.clamp(min=0)
        ),
    ):
        with pytest.raises(FlexSpecError, match="FS036"):
            call()


def test_lengths_are_those_of_the_whole_sequence():
    """Where a tensor or a canvas says them; else a pattern that reads them is refused."""
    scaled = fs.distance_scale(lambda kv_len: torch.log(kv_len))
    spec = fs.Attention(fs.document(), [scaled], scale=DIM**-0.5 / torch.log(torch.tensor(float(WHOLE))).item())
    for backend in BACKENDS:
        attend = fs.compile(spec, backend=backend, block_size=16)
        same(attend, whole_qkv(), scattered(9, 2, seed=1), scattered(30, 1), same_documents(), document_id=IDS)


def test_coordinates_of_a_canvas():
    video = fs.Canvas(t=5, h=5, w=6)
    mask = fs.mask(canvas=video)(lambda q, kv: (q.t >= kv.t) & ((q.h - kv.h).abs() <= 1))
    t, h = torch.arange(WHOLE) // 30, torch.arange(WHOLE) // 6 % 5
    kept = (t[:, None] >= t) & ((h[:, None] - h).abs() <= 1)
    for backend in BACKENDS:
        attend = fs.compile(mask, backend=backend, block_size=16)
        same(attend, whole_qkv(), scattered(30, 1, seed=4), scattered(64, 2, seed=5), kept[None, None])


def test_a_canvas_for_each_side():
    """Two new frames of queries somewhere, over some frames of a cache."""
    frames, cache = fs.Canvas(t=4, h=5, w=6), fs.Canvas(t=5, h=5, w=6)
    mask = fs.mask(q_canvas=frames, kv_canvas=cache)(lambda q, kv: (q.t >= kv.t) & (q.h == kv.h))
    t, h = torch.arange(WHOLE) // 30, torch.arange(WHOLE) // 6 % 5
    kept = (t[:, None] >= t) & (h[:, None] == h)
    attend = fs.compile(mask, backend="triton", block_size=16)
    q_at, kv_at = scattered(30, 1, whole=120, seed=4), scattered(64, 2, seed=5)
    same(attend, whole_qkv(), q_at, kv_at, kept[None, None])
    assert "has 120" in refused("FS024", attend, 30, 64, q_positions=q_at + 40, kv_positions=kv_at)


@pytest.mark.parametrize("backend", ["blocks", "triton"])
def test_a_trained_bias_by_distance(backend):
    bias = fs.Input("bias", dims=("heads", "_"), dtype="float")
    score = fs.score(lambda score, h, q, kv: score + bias[h, (q - kv).clamp(0, 31)])
    table = drawn(HEADS, 32, seed=8).requires_grad_()
    q, k, v = whole_qkv(kv_heads=HEADS)
    q_at, kv_at = scattered(20, 2, seed=1), scattered(50, 2, seed=2)
    each = oracle.heads_of(q_at, 2, 4), oracle.heads_of(kv_at, 2, 4)
    kept, dout = (Q >= K)[None, None], drawn(2, 4, 20, DIM, seed=9)
    wanted = oracle.attention(q, k, v, *each, kept, table[:, (Q - K).clamp(0, 31)][None])
    attend = fs.compile(fs.Attention(fs.causal(), [score]), backend=backend, block_size=16)
    rows = oracle.gathered(q, each[0]), oracle.gathered(k, each[1]), oracle.gathered(v, each[1])
    out = attend(*rows, bias=table, q_positions=q_at, kv_positions=kv_at)
    torch.testing.assert_close(out.double(), wanted, **TOLERANCE)
    mine, theirs = (torch.autograd.grad(x, table, dout.to(x.dtype))[0] for x in (out, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_without_waiting_for_a_device():
    spec = fs.causal() & fs.document()
    attend = fs.compile(spec, exact=False, backend="flex", block_size=16)
    kept = (Q >= K) & same_documents()
    q_at, kv_at = scattered(40, 2, seed=1), scattered(70, 2, 2, seed=2)
    same(attend, whole_qkv(), q_at, kv_at, kept, document_id=IDS)
    meta = {"q_positions": q_at.to("meta"), "kv_positions": kv_at.to("meta"), "document_id": IDS.to("meta")}
    sizes = fs.inputs.make_sizes(40, 70, 2, 4)
    lowered = attend._cache.of(sizes, meta, torch.device("meta"))[1]  # meta tensors hold nothing to read
    assert isinstance(lowered.block_map, DeviceMap)


def refused(code, attend, q_rows, kv_rows, **values):
    q, k, v = whole_qkv()
    with pytest.raises(FlexSpecError) as found:
        attend(q[:, :, :q_rows], k[:, :, :kv_rows], v[:, :, :kv_rows], **values)  # the user's own line
    assert found.value.code == code
    assert found.value.where is None or "the user's own line" in found.value.where
    return str(found.value)


CAUSAL = fs.compile(fs.causal(), backend="blocks")


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("FS022", {"q_positions": torch.arange(9)[None]}),
        ("FS022", {"q_positions": torch.arange(8)}),
        ("FS022", {"kv_positions": torch.zeros(3, 16, dtype=torch.int64)}),
        ("FS022", {"kv_positions": torch.zeros(2, 3, 16, dtype=torch.int64)}),
        ("FS022", {"kv_positions": torch.zeros(1, 1, 1, 16, dtype=torch.int64)}),
        ("FS023", {"q_positions": torch.arange(8.0)[None]}),
        ("FS023", {"q_positions": torch.arange(8, dtype=torch.int16)[None]}),
        ("FS023", {"kv_positions": [0] * 16}),
        ("FS036", {"q_positions": torch.full((1, 8), 2**31)}),
        ("FS036", {"kv_positions": torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 3]])}),
    ],
)
def test_bad_positions(code, values):
    refused(code, CAUSAL, 8, 16, **values)


def test_bad_positions_of_a_pattern():
    documents = fs.compile(fs.document(), backend="blocks")
    past = torch.full((1, 16), -1)
    past[0, 3] = WHOLE
    assert "reach 150" in refused("FS024", documents, 8, 16, kv_positions=past, document_id=IDS)
    reads = fs.compile(fs.mask(lambda q, kv, kv_len: q + kv < kv_len), backend="blocks")
    refused("FS031", reads, 8, 16, kv_positions=past)
    table = torch.arange(100)
    looks_up = fs.compile(fs.mask(lambda q, kv: table[kv] > 3), backend="blocks")
    refused("FS024", looks_up, 8, 16, kv_positions=past)
    refused("FS033", fs.compile(fs.causal(), order="auto"), 16, 16, kv_positions=past)
    with pytest.raises(FlexSpecError, match="FS021"):
        fs.compile(fs.mask(lambda q, kv: fs.Input("kv_positions", dims=("kv_len",))[kv] < q))


def test_two_keys_at_one_position_are_told_apart_by_nothing_that_looks_up():
    twice = torch.tensor([[5, 5, 7, -1, -1]])
    attend = fs.compile(fs.document(), backend="blocks")
    same_ids = IDS[:1, [5, 5, 7]] == IDS[0, 5]
    q, k, v = drawn(1, 1, 1, 16), drawn(1, 1, 5, 16), drawn(1, 1, 5, 16)
    out = attend(q, k, v, document_id=IDS[:1], q_positions=torch.tensor([[5]]), kv_positions=twice)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :3], v[:, :, :3], attn_mask=same_ids[None])
    torch.testing.assert_close(out, wanted, **TOLERANCE)


def test_a_value_of_the_pattern_may_have_any_name():
    positions = torch.arange(WHOLE) % 3
    mask = fs.mask(lambda q, kv, *, positions_q=1: (positions[kv] == positions_q) & (q >= kv))
    kept = (positions == 1) & (Q >= K)
    for backend in ("flex", "triton"):
        attend = fs.compile(mask, backend=backend, block_size=16)
        same(attend, whole_qkv(), scattered(9, 2), scattered(40, 1, seed=8), kept[None, None])


def test_new_positions_and_longer_tables_recompile_nothing_that_flex_keeps():
    torch._dynamo.reset()
    attend = fs.compile(fs.causal_window(31), backend="flex", block_size=16)
    kept, seen = ((Q >= K) & (Q - K < 31))[None, None], []
    for seed in range(4):
        same(attend, whole_qkv(), scattered(17, 2, seed=seed), scattered(70, 2, seed=seed + 9), kept)
        seen.append(counters["stats"]["unique_graphs"])
    assert len(set(seen)) == 1


def test_a_mask_that_reads_no_position_still_drops_empty_slots():
    attend = fs.compile(fs.everything(), backend="triton", block_size=16)
    same(
        attend, whole_qkv(), scattered(9, 2), scattered(40, 1, seed=8), torch.ones(1, 1, WHOLE, WHOLE, dtype=torch.bool)
    )
