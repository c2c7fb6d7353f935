"""Orders and canvases for each side, orders for each head: nothing moves the meaning."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import make_mask, masks, tables

import flexspec as fs
from flexspec.errors import FlexSpecError
from flexspec.order import as_order

DIM = 16
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
BACKENDS = ("reference", "blocks", "triton", "flex")
VIDEO, IMAGE = fs.Canvas(t=4, h=6, w=5), fs.Canvas(h=6, w=5)


def qkv(q_len, kv_len, heads=4, kv_heads=4, batch=2):
    sizes = ((heads, q_len), (kv_heads, kv_len), (kv_heads, kv_len))
    made = torch.Generator().manual_seed(q_len * kv_len)
    return [torch.randn(batch, *size, DIM, generator=made).requires_grad_() for size in sizes]


def dense(q, k, v, kept):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.where(kept, q.double() @ k.double().mT / DIM**0.5, -1e30)
    return torch.where(kept.any(-1, keepdim=True), scores.softmax(-1), 0.0) @ v.double()


def same(mask, order, tensors, kept, backends=("blocks", "triton"), trained=("blocks",), **values):
    """Output and gradients are those of dense attention, in every backend."""
    wanted = dense(*tensors, kept)
    dout = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    exact = torch.autograd.grad(wanted, tensors, dout.double())
    for backend in backends:
        attend = fs.compile(mask, order=order, backend=backend, block_size=16)
        out = attend(*(x if backend in trained else x.detach() for x in tensors), **values)
        torch.testing.assert_close(out.double(), wanted, **TOLERANCE)
        if out.requires_grad:
            for mine, theirs in zip(torch.autograd.grad(out, tensors, dout), exact, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def coordinates(canvas):
    sides = [torch.arange(n) for n in canvas.lengths.values()]
    return torch.cartesian_prod(*sides).T if len(sides) > 1 else sides[0][None]


def frame_over_frames():
    """A new frame of queries that sees its neighborhood in every frame of the cache."""
    return fs.mask(q_canvas=IMAGE, kv_canvas=VIDEO)(lambda q, kv: ((q.h - kv.h).abs() <= 1) & ((q.w - kv.w).abs() <= 2))


def frame_kept():
    (h, w), (_, kh, kw) = coordinates(IMAGE), coordinates(VIDEO)
    return ((h[:, None] - kh).abs() <= 1) & ((w[:, None] - kw).abs() <= 2)


TILES = {
    "none": None,
    "tiles": (fs.tiled(IMAGE, h=2, w=2), fs.tiled(VIDEO, t=2, h=2, w=2)),
    "queries only": (fs.tiled(IMAGE, h=3, w=5), None),
    "keys only": (None, fs.axes(VIDEO, "h", "w", "t")),
    "curves": (fs.hilbert(IMAGE), fs.morton(VIDEO)),
    "a curve and tiles": (fs.tiled(IMAGE, h=4, w=4), fs.hilbert(VIDEO)),
}


@pytest.mark.parametrize("name", TILES)
def test_one_frame_over_a_cache_of_frames(name):
    backends = BACKENDS if name in ("none", "curves") else ("blocks", "triton")
    same(frame_over_frames(), TILES[name], qkv(IMAGE.size, VIDEO.size, kv_heads=2), frame_kept(), backends)


def test_image_tokens_over_pooled_tokens():
    """A token sees the pooled tokens of the 3 x 3 windows around its own."""
    image, pooled = fs.Canvas(h=12, w=9), fs.Canvas(h=4, w=3)
    mask = fs.mask(q_canvas=image, kv_canvas=pooled)(
        lambda q, kv: ((q.h // 3 - kv.h).abs() <= 1) & ((q.w // 3 - kv.w).abs() <= 1)
    )
    (h, w), (kh, kw) = coordinates(image), coordinates(pooled)
    kept = ((h[:, None] // 3 - kh).abs() <= 1) & ((w[:, None] // 3 - kw).abs() <= 1)
    same(mask, (fs.tiled(image, h=3, w=3), None), qkv(108, 12), kept)


def test_video_over_text():
    mask = fs.mask(q_canvas=VIDEO)(lambda q, kv: kv // 7 == q.t)
    kept = torch.arange(25) // 7 == coordinates(VIDEO)[0][:, None]
    same(mask, (fs.tiled(VIDEO, t=2, h=3, w=5), None), qkv(VIDEO.size, 25), kept)
    assert mask.every_query_attends(kv_len=25)


def test_scores_on_two_canvases():
    score = fs.score(q_canvas=IMAGE, kv_canvas=VIDEO)(
        lambda score, q, kv: score - 0.5 * (q.h - kv.h).abs() + 0.1 * kv.t
    )
    (h, _), (t, kh, _) = coordinates(IMAGE), coordinates(VIDEO)
    bias = -0.5 * (h[:, None] - kh).abs() + 0.1 * t
    q, k, v = (x.detach() for x in qkv(IMAGE.size, VIDEO.size))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=bias.masked_fill(~frame_kept(), -torch.inf)
    )
    for backend in ("blocks", "triton"):
        spec = fs.Attention(frame_over_frames(), [score])
        out = fs.compile(spec, order=TILES["a curve and tiles"], backend=backend, block_size=16)(q, k, v)
        torch.testing.assert_close(out, wanted, **TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(masks, st.sampled_from(["tiles", "keys only", "curves"]), st.integers(0, 99))
def test_random_masks_in_orders_by_side(written, name, seed):
    """The map over memory holds the pairs of the mask, moved."""
    held = tables(VIDEO.size, 2, 3, seed)
    mask, order = make_mask(written, held), TILES[name]
    moved = mask.dense(IMAGE.size, VIDEO.size, batch=2, heads=3)
    for own, axis, size in zip(order, (2, 3), (IMAGE.size, VIDEO.size), strict=True):
        if own is not None:
            table = own.permutation(size)
            shape = [1, 1, 1, 1]
            shape[axis] = -1
            moved = moved.index_select(axis, table.clamp(min=0)) & (table >= 0).view(shape)
    blocks = fs.block_map(mask, IMAGE.size, VIDEO.size, batch=2, heads=3, block_size=(8, 5), order=order)
    for b in range(2):
        for h in range(3):
            found = blocks.tokens(0, blocks.q_len, 0, blocks.kv_len, b=b, h=h)
            assert torch.equal(found, moved[b, h])


def test_inputs_that_lie_in_their_orders():
    q, k, v = (x.detach() for x in qkv(IMAGE.size, VIDEO.size))
    own, cache = TILES["tiles"]
    attend = fs.compile(frame_over_frames(), order=(own, cache), backend="blocks", block_size=16)
    out = attend(own.apply(q), cache.apply(k), cache.apply(v), inputs="ordered")
    torch.testing.assert_close(own.undo(out), attend(q, k, v))


def test_inside_a_compiled_model():
    attend = fs.compile(frame_over_frames(), order=TILES["tiles"], backend="blocks", block_size=16)
    tensors = qkv(IMAGE.size, VIDEO.size, kv_heads=2)
    model = torch.compile(lambda *qkv: attend(*qkv).sin(), backend="aot_eager", fullgraph=True)
    mine, theirs = model(*tensors), attend(*tensors).sin()
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(*(torch.autograd.grad(out.sum(), tensors) for out in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_own_value_that_moved_away_is_found(backend):
    mixed = fs.Attention(video_mask(), weight=fs.identity_mix(0.25))
    q, k, v = (x.detach() for x in qkv(VIDEO.size, VIDEO.size))
    wanted = 0.75 * dense(q, k, v, video_kept()) + 0.25 * v.double()
    for order in (BY_HEAD["queries by head"], (fs.tiled(VIDEO, t=3, h=4, w=5), fs.morton(VIDEO)), fs.hilbert(VIDEO)):
        out = fs.compile(mixed, order=order, backend=backend, block_size=16)(q, k, v)
        torch.testing.assert_close(out.double(), wanted, **TOLERANCE)


def test_an_order_by_head_as_a_mask():
    order = as_order([fs.axes(VIDEO, "h", "w", "t"), None, fs.tiled(VIDEO, t=2, h=4, w=4)])
    mask = fs.mask(canvas=VIDEO)(lambda h, q, kv: (q.h == kv.h) & (q.t + h >= kv.t))
    dense, table = mask.dense(VIDEO.size, heads=3), order.permutation(VIDEO.size)
    there = table >= 0
    wanted = torch.take_along_dim(dense, table.clamp(min=0)[..., None], 2)
    wanted = torch.take_along_dim(wanted, table.clamp(min=0)[..., None, :], 3) & there[..., None] & there[..., None, :]
    assert torch.equal(fs.reordered(mask, order).dense(table.shape[-1], heads=3), wanted)


# by head


ORDERS = [fs.axes(VIDEO, *names) for names in ("thw", "htw", "wht", "twh")]


def video_mask():
    return fs.mask(canvas=VIDEO)(lambda h, q, kv: ((q.h - kv.h).abs() <= 1 + h % 2) & (q.t >= kv.t))


def video_kept(heads=4):
    t, h, _ = coordinates(VIDEO)
    near = (h[:, None] - h).abs() <= 1 + torch.arange(heads).view(-1, 1, 1) % 2
    return near & (t[:, None] >= t)


BY_HEAD = {
    "axes": ORDERS,
    "padded tiles": [fs.tiled(VIDEO, t=2, h=4, w=4), None, fs.hilbert(VIDEO), ORDERS[2]],
    "labels": fs.by_label(torch.randint(0, 5, (2, 4, VIDEO.size), generator=torch.Generator().manual_seed(5))),
    "labels of one": fs.by_label(torch.randint(0, 5, (1, 4, VIDEO.size), generator=torch.Generator().manual_seed(6))),
    "queries by head": (fs.by_label(torch.arange(480).view(1, 4, 120) * 7 % 11), fs.morton(VIDEO)),
}


@pytest.mark.parametrize("name", BY_HEAD)
def test_each_head_moves_by_its_own_order(name):
    backends = BACKENDS if name == "padded tiles" else ("blocks", "triton")
    trained = ("blocks", "triton", "reference") if name == "padded tiles" else ("blocks",)
    same(video_mask(), BY_HEAD[name], qkv(VIDEO.size, VIDEO.size), video_kept(), backends, trained)


def test_lse_by_head_and_one_kernel_call(monkeypatch):
    from flexspec.compiler.backends.triton import autograd

    started = []
    real = autograd.run_forward
    monkeypatch.setattr(autograd, "run_forward", lambda *args: (started.append(args), real(*args))[1])
    q, k, v = (x.detach() for x in qkv(VIDEO.size, VIDEO.size))
    attend = fs.compile(video_mask(), order=ORDERS, backend="triton", block_size=16)
    _, lse = attend(q, k, v, return_lse=True)
    scores = torch.where(video_kept(), q @ k.mT / 4, -torch.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
    assert len(started) == 1


def test_the_map_of_each_head_is_in_its_own_order():
    """A temporal head in token-major memory is a narrow band, a spatial one in frame-major memory."""
    video = fs.Canvas(t=16, h=8, w=8)
    mask = fs.mask(canvas=video)(
        lambda h, q, kv: ((h == 0) & (q.t == kv.t)) | ((h == 1) & (q.h == kv.h) & (q.w == kv.w))
    )
    orders = [None, fs.axes(video, "h", "w", "t")]
    each = fs.block_map(mask, video.size, heads=2, order=orders, block_size=64)
    plain = fs.block_map(mask, video.size, heads=2, block_size=64)
    assert each.counts()[0] > plain.counts()[0]
    for head, order in enumerate(orders):
        alone = [lambda q, kv: q.t == kv.t, lambda q, kv: (q.h == kv.h) & (q.w == kv.w)][head]
        wanted = fs.block_map(fs.mask(canvas=video)(alone), video.size, order=order, block_size=64).kinds()[0, 0]
        assert torch.equal(each.kinds()[0, head], wanted)


def test_query_heads_of_a_key_head_share_its_order():
    paired = [ORDERS[1], ORDERS[1], ORDERS[2], ORDERS[2]]
    same(video_mask(), paired, qkv(VIDEO.size, VIDEO.size, kv_heads=2), video_kept())


@pytest.mark.parametrize("name", ["axes", "padded tiles", "labels", "queries by head"])
def test_keys_lie_once_for_each_query_head_where_their_orders_differ(name):
    backends = BACKENDS if name == "padded tiles" else ("blocks", "triton")
    tensors = qkv(VIDEO.size, VIDEO.size, kv_heads=2)
    same(video_mask(), BY_HEAD[name], tensors, video_kept(), backends, ("blocks", "triton", "reference"))
    q, k, _ = (x.detach() for x in tensors)
    each = [fs.measure(video_mask(), q, k, order=order, block_size=16) for order in (BY_HEAD[name], None)]
    torch.testing.assert_close(*(found.column_sums for found in each))


def test_repeated_keys_in_a_compiled_model_in_pages_and_where_they_lie_already():
    tensors = qkv(VIDEO.size, VIDEO.size, kv_heads=2)
    attend = fs.compile(video_mask(), order=ORDERS, backend="triton", block_size=16)
    model = torch.compile(lambda *qkv: attend(*qkv).sin(), backend="aot_eager", fullgraph=True)
    mine, theirs = model(*tensors), attend(*tensors).sin()
    torch.testing.assert_close(mine, theirs)
    for a, b in zip(*(torch.autograd.grad(out.sum(), tensors) for out in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)
    q, k, v = (x.detach()[:1] for x in tensors)
    pages = (x[0].transpose(0, 1).reshape(15, 8, 2, DIM) for x in (k, v))
    paged = attend(q, *pages, page_table=torch.arange(15, dtype=torch.int32)[None], kv_len=VIDEO.size)
    torch.testing.assert_close(paged, attend(q, k, v))
    with pytest.raises(FlexSpecError, match="in different orders") as found:
        attend(*tensors, inputs="ordered")
    assert found.value.code == "FS033"


def test_orders_move_tensors_there_and_back():
    x = torch.randn(2, 4, VIDEO.size, 3)
    for order in (as_order(BY_HEAD["padded tiles"]), BY_HEAD["labels"]):
        moved = order.apply(x)
        table = order.permutation(VIDEO.size).expand(2, -1, -1)
        picked = torch.take_along_dim(x, table.clamp(min=0)[..., None], 2) * (table >= 0)[..., None]
        assert torch.equal(moved, picked) and torch.equal(order.undo(moved), x)
        assert torch.equal(order.undo(order.apply(x[..., 0], -1), dim=-1), x[..., 0])
        again = pickle.loads(pickle.dumps(order))
        assert torch.equal(again.apply(x), moved)


def refused(code, call, text="FS"):
    with pytest.raises(FlexSpecError, match=text) as found:
        call()
    assert found.value.code == code, found.value
    return str(found.value)


def test_what_does_not_fit():
    pair = TILES["tiles"]
    both = qkv(IMAGE.size, VIDEO.size)
    refused("FS033", lambda: fs.compile(video_mask(), order=(ORDERS[0],)))
    refused("FS033", lambda: fs.compile(video_mask(), order=[ORDERS[0], 3]))
    refused("FS033", lambda: fs.compile(video_mask(), order=[fs.striped(2)]))
    refused("FS033", lambda: fs.compile(video_mask(), order=[ORDERS[0], fs.hilbert(IMAGE)]))
    refused("FS033", lambda: fs.compile(video_mask(), order=((None, ORDERS[0]), None)))
    refused("FS033", lambda: fs.compile(fs.everything(), order=pair)(*qkv(31, VIDEO.size)), "31")
    refused("FS033", lambda: fs.compile(fs.everything(), order=ORDERS[0])(*both), "order=")
    refused("FS033", lambda: fs.compile(video_mask(), order=ORDERS[:3])(*qkv(120, 120)), "of 3 heads, the call has 4")
    refused("FS022", lambda: fs.compile(video_mask(), order=BY_HEAD["labels"])(*qkv(120, 120, batch=3)))
    refused("FS033", lambda: fs.concatenated(3, BY_HEAD["labels"]))
    refused("FS033", lambda: as_order(pair).permutation(30))
    refused("FS032", lambda: fs.compile(frame_over_frames())(*qkv(IMAGE.size, 90)), "the kv side")
    refused("FS032", lambda: fs.compile(video_mask())(*both), "q_canvas")
    refused("FS032", lambda: fs.mask(canvas=VIDEO, q_canvas=IMAGE)(lambda q, kv: q.h == kv.h))
    refused("FS032", lambda: fs.mask(q_canvas=3)(lambda q, kv: q == kv))
    refused("FS011", lambda: fs.mask(q_canvas=IMAGE, kv_canvas=VIDEO)(lambda q, kv: q.t == kv.t), "the axes h, w")
    refused("FS032", lambda: frame_over_frames() & video_mask())
    refused("FS022", lambda: fs.by_label(torch.zeros(1, 2, 3, 4, dtype=torch.int64)))
    held = fs.mask(lambda q, kv: fs.Input("memory_order", dims=("_",))[kv] > 0)
    refused(
        "FS026",
        lambda: fs.block_map(held, IMAGE.size, VIDEO.size, order=TILES["curves"], memory_order=torch.arange(200)),
    )


# exchanged, and kept in files


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_exchanged_sides_are_the_transpose(written, q_len, kv_len, seed):
    mask = make_mask(written, tables(max(q_len, kv_len, 4), 2, 3, seed))
    sizes = {"batch": 2, "heads": 3}
    assert torch.equal(mask.T.dense(q_len, kv_len, **sizes), mask.dense(kv_len, q_len, **sizes).mT)
    again = mask.T.T
    assert again == mask


def test_what_an_exchange_takes_along():
    seen = fs.mask(
        lambda q, kv, q_len, kv_len: fs.Input("seen", dims=("q_len",), dtype="bool")[q] & (q + 2 * kv < q_len + kv_len)
    )
    keep = torch.rand(9) < 0.5
    assert torch.equal(seen.T.dense(5, 9, seen=keep), seen.dense(9, 5, seen=keep).mT)
    turned = frame_over_frames().T
    assert torch.equal(turned.dense(VIDEO.size, IMAGE.size)[0, 0], frame_kept().T)
    assert (turned & fs.everything()).canvases.q == VIDEO
    assert repr((fs.causal() | fs.sink(2)).T) == "(causal() | sink(n=2)).T"
    window = fs.mask(lambda q, kv, *, near=3: q - kv < near)
    assert torch.equal(window.T(near=2).dense(6), window(near=2).dense(6).mT)


def test_canvases_of_sides_are_kept_in_files(tmp_path):
    for mask in (frame_over_frames(), frame_over_frames().T, fs.mask(q_canvas=VIDEO)(lambda q, kv: q.t == kv)):
        mask.save(tmp_path / "mask.yaml")
        again = fs.load(tmp_path / "mask.yaml")
        assert again == mask and again.canvases == mask.canvases
        assert pickle.loads(pickle.dumps(mask)) == mask
