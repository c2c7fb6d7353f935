"""The decode kernels against the reference: few queries, many keys, shared out in equal parts."""

import math

import numpy as np
import pytest
import torch
from flexspec.compiler.backends.triton import decoding
from test_triton import DEVICE, TOLERANCE, qkv, same_as_reference

import flexspec as fs

KEYS = 190
FAR = torch.tensor([3, 9, 40, 150])
IDS = torch.tensor([[0] * 100 + [1] * 90, [0] * 20 + [1] * 3 + [2] * 167])


@pytest.fixture
def decoded(monkeypatch):
    """Some call must take this path."""
    ran = []
    real = decoding.run_decode
    monkeypatch.setattr(decoding, "run_decode", lambda *args: (ran.append(args), real(*args))[1])
    yield
    assert ran


def last(q_len, kv_len=KEYS):
    """Lower-right causal."""
    return fs.causal(kv_len - q_len)


def window(size, q_len=1):
    return fs.mask(lambda q, kv: (q + KEYS - q_len - kv < size) | (kv < 3)) & last(q_len)


MASKS = {
    "everything": fs.everything(),
    "nothing": fs.nothing(),
    "causal": last(3),
    "window and sink": window(70, 3),
    "holes": fs.mask(lambda kv: kv // 20 % 3 == 1),
    "documents": fs.mask(lambda b, q, kv: (IDS[b, kv] == IDS[b, 22]) & (kv <= q + KEYS - 3)),
    "by head": fs.mask(lambda h, q, kv: q + KEYS - 3 - kv <= FAR[h]) & last(3),
    "by pairs of heads": fs.mask(lambda h, q, kv: q + KEYS - 3 - kv <= FAR[h // 2]) & last(3),
    "by query": fs.mask(lambda q, kv: (q > 0) & (kv % 5 == q)),
}


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    same_as_reference(MASKS[name], *qkv(3, KEYS, heads=4, kv_heads=1))


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize(("q_len", "heads", "kv_heads"), [(1, 4, 1), (1, 2, 2), (3, 8, 2), (16, 2, 2), (16, 12, 1)])
def test_query_heads_share_a_tile(q_len, heads, kv_heads):
    same_as_reference(window(70, q_len), *qkv(q_len, KEYS, heads=heads, kv_heads=kv_heads, batch=1))


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("parts", [1, 2, 7, 50])
@pytest.mark.parametrize("name", ["documents", "by head", "nothing"])
def test_parts(monkeypatch, parts, name):
    monkeypatch.setattr(decoding, "parts_on", lambda device: parts)
    monkeypatch.setattr(decoding, "TILES_PER_PART", 1)
    monkeypatch.setattr(decoding, "PIECES", 4)
    same_as_reference(MASKS[name], *qkv(3, KEYS, heads=4, kv_heads=2), block_size=16)


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("head_dim", "v_dim"), [(80, 80), (40, 72)])
def test_channels(dtype, head_dim, v_dim):
    same_as_reference(last(1), *qkv(1, KEYS, heads=4, kv_heads=1, head_dim=head_dim, v_dim=v_dim, dtype=dtype))


def test_scores_know_their_heads():
    bias = torch.randn(4, KEYS, generator=torch.Generator().manual_seed(1))
    scores = [fs.softcap(5.0), lambda s, b, h, q, kv: s + bias[h, kv] - (q + 1) * h / 9]
    same_as_reference(fs.Attention(mask=last(3), scores=scores), *qkv(3, KEYS, heads=4, kv_heads=2))


LOGIT = torch.tensor([0.5, -math.inf, 3.0, -2.0])


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("name", ["documents", "by head", "nothing", "by query"])
@pytest.mark.parametrize("logit", [LOGIT, 1.5])
def test_a_sink_is_a_column_of_the_merged_row(name, logit):
    spec = fs.Attention(mask=MASKS[name], scores=[fs.softcap(5.0)], weight=fs.sink_logit(logit))
    same_as_reference(spec, *qkv(3, KEYS, heads=4, kv_heads=2))


def test_strides_and_plain_torch():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(1, KEYS, heads=4, kv_heads=2))
    out = same_as_reference(fs.everything(), q, k, v)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)


def paged(x, page_size, seed=0):
    """Pages in no order [pages, page_size, heads, head_dim], rubbish where no token is, and their table."""
    batch, heads, length, head_dim = x.shape
    each = -(-length // page_size)
    table = torch.randperm(batch * each + 3, generator=torch.Generator().manual_seed(seed))[: batch * each]
    table = table.view(batch, each).to(DEVICE, torch.int32)
    pages = torch.full((batch * each + 3, page_size, heads, head_dim), math.nan, dtype=x.dtype, device=DEVICE)
    room = pages[table.long()]
    room.view(batch, each * page_size, heads, head_dim)[:, :length] = x.transpose(1, 2)
    pages[table.long()] = room
    past = torch.full((batch, 2), -1, dtype=torch.int32, device=DEVICE)  # entries that no token has
    return pages, torch.cat([table, past], 1).T.contiguous().T


@pytest.mark.usefixtures("decoded")
@pytest.mark.parametrize("page_size", [1, 16, 24, 200])
def test_pages(page_size):
    q, k, v = qkv(3, KEYS, heads=4, kv_heads=2, head_dim=24)
    k_pages, table = paged(k, page_size)
    v_pages, _ = paged(v, page_size)
    mask = window(70, 3) & fs.mask(lambda b, kv: kv < 190 - b * 60)
    for backend in ("triton", "reference"):
        attend = fs.compile(mask, backend=backend, block_size=32)
        out, lse = attend(q, k_pages, v_pages, page_table=table, kv_len=KEYS, return_lse=True)
        wanted, wanted_lse = attend(q, k, v, return_lse=True)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(lse, wanted_lse)


def test_pages_for_many_queries_and_in_an_order():
    k, v = qkv(40, 60)[1:]
    q = qkv(60)[0]
    k_pages, table = paged(k, 16)
    v_pages, _ = paged(v, 16)
    for order in (None, fs.striped(2)):
        attend = fs.compile(fs.causal(), backend="triton", block_size=16, order=order)
        torch.testing.assert_close(attend(q, k_pages, v_pages, page_table=table, kv_len=60), attend(q, k, v))


def wrong(code, **changes):
    q = torch.zeros(2, 4, 1, 16)
    pages = torch.zeros(9, 8, 2, 16)
    given = {"k": pages, "v": pages, "page_table": torch.zeros(2, 3, dtype=torch.int32), "kv_len": 20, **changes}
    with pytest.raises(fs.FlexSpecError) as error:
        fs.compile(fs.everything())(q, given.pop("k"), given.pop("v"), **given)
    assert error.value.code == code
    return error.value.message


def test_pages_that_do_not_fit():
    assert "how many keys" in wrong("FS020", kv_len=None)
    assert "kv_len" in wrong("FS020", page_table=None)
    assert "float32" in wrong("FS023", page_table=torch.zeros(2, 3))
    assert "[batch" in wrong("FS022", page_table=torch.zeros(3, dtype=torch.int32))
    assert "hold 24" in wrong("FS040", kv_len=25)
    assert "both" in wrong("FS040", v=torch.zeros(9, 4, 2, 16))
    assert "batch" in wrong("FS040", page_table=torch.zeros(3, 3, dtype=torch.int32))
    wrong("FS030", kv_len=0)


@pytest.mark.usefixtures("decoded")
def test_a_loop_is_one_prefill():
    steps, length = 20, 70
    mask = fs.mask(lambda q, kv, *, seen=0: (q + seen >= kv) & ((q + seen - kv < 33) | (kv < 3)))
    q, k, v = qkv(length, heads=2, kv_heads=1, batch=1)
    whole = fs.compile(mask, backend="triton", block_size=16)(q, k, v)
    attend = fs.compile(mask, backend="triton", block_size=16)
    for at in range(length - steps, length):
        token = attend(q[:, :, at : at + 1], k[:, :, : at + 1], v[:, :, : at + 1], seen=at)
        torch.testing.assert_close(token, whole[:, :, at : at + 1], atol=2e-5, rtol=2e-5)


def work(mask, parts, heads=4, group=4, q_len=1, kv_len=KEYS, batch=2):
    made = fs.block_map(mask, q_len, kv_len, batch=batch, heads=heads, block_size=16)
    index = np.broadcast_to(made.index, (batch, heads))
    packed = decoding.heads_in_a_row(index, group, q_len)
    return decoding._shared_out(made, index[:, ::packed].reshape(-1), packed, 16, parts)


@pytest.mark.parametrize("name", ["documents", "by head", "window and sink", "everything"])
@pytest.mark.parametrize("parts", [1, 3, 4])
def test_parts_are_equal(name, parts):
    found = work(MASKS[name], parts, q_len=3)
    tiles = np.zeros(found.pieces, int)
    for first, start, stop in (found.full, found.partial):
        for piece in range(found.pieces):
            tiles[piece] += int((stop - start)[first[piece] : first[piece + 1]].sum())
    first = found.first_of_part[: found.parts + 1].tolist()
    each = [tiles[a:b].sum() for a, b in zip(first, first[1:], strict=False)]
    assert len(each) == parts and max(each) - min(each) <= 1 and min(tiles) > 0
    made = fs.block_map(MASKS[name], 3, KEYS, batch=2, heads=4, block_size=16)
    kinds = made.kinds().expand(2, 4, 1, -1)[:, :: found.packed]
    assert sum(each) == int((kinds > 0).sum())


def test_heads_with_one_map_are_packed():
    assert work(MASKS["causal"], 2, q_len=3).packed == 4
    assert work(MASKS["by pairs of heads"], 2, q_len=3).packed == 2
    assert work(MASKS["by head"], 2, q_len=3).packed == 1
    assert work(fs.everything(), 2, heads=64, group=64, q_len=16).packed == 4


def test_full_blocks_ask_no_mask_though_queries_are_few():
    found = work(fs.everything(), 1, kv_len=192)
    assert int((found.full[2] - found.full[1]).sum()) == 24 and not found.partial[2].any()
