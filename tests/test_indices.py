"""An index that leaves its tensor is an error before anything runs, exactly where the reference has it."""

import pytest
import torch
from flexspec.compiler.blocks import indices
from hypothesis import given, settings
from hypothesis import strategies as st
from random_masks import Written, block_kinds, integers, make_mask, tables

import flexspec as fs

BACKENDS = ("reference", "flex", "triton")


def qkv(length, batch=1, heads=2, kv_len=None):
    made = torch.Generator().manual_seed(length)
    return [torch.randn(batch, heads, n, 16, generator=made) for n in (length, kv_len or length, kv_len or length)]


def refused(do, *parts):
    with pytest.raises(fs.FlexSpecError) as caught:
        do()
    assert caught.value.code == "FS024"
    text = str(caught.value)
    assert all(part in text for part in (*parts, "clamp", "test_indices.py")), text


CHOSEN = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.7
FLAT = torch.ones(4, 4, dtype=torch.bool)
LINE, BIAS = torch.arange(8) % 3, torch.linspace(-1, 1, 50)
WHICH = torch.tensor([0, 3, 8, 1] * 32)
LEAVING = {
    "a table of blocks": (lambda b, h, q, kv: CHOSEN[b, h, q // 16, kv // 16], ["index 2 of", "0 to 7", "size is 4"]),
    "of two dims": (lambda b, h, q, kv: FLAT[q // 16, kv // 32], ["index 0 of `FLAT` goes from 0 to 7, its size is 4"]),
    "of one side": (lambda b, h, q, kv: LINE[kv // 15] == 0, ["index 0 of `LINE` goes from 0 to 8, its size is 8"]),
    "of both sides": (lambda b, h, q, kv: LINE[(q - kv) // 14] == 0, ["index 0 of `LINE` is", "q = ", "its size is 8"]),
    "past the back": (lambda b, h, q, kv: LINE[-1 - q // 15] == 0, ["goes from -9 to -1, its size is 8"]),
    "the last head": (lambda b, h, q, kv: (LINE[q // 16 + h] == 0) & (q >= kv), ["goes from 1 to 8 at b = 0, h = 1"]),
    "more heads than rows": (lambda b, h, q, kv: FLAT[0][0] & CHOSEN[b, h + 1, 0, 0] & (q >= kv), ["index 1 of"]),
    "behind where": (lambda b, h, q, kv: torch.where(q < 64, LINE[q // 8] == 0, kv < 9), ["goes from 0 to 15"]),
    "behind and": (lambda b, h, q, kv: (q - kv < 8) & (q >= kv) & (LINE[q - kv] == 0), ["index 0 of `LINE` is"]),
    "multiplied away": (lambda b, h, q, kv: (LINE[q // 2] * 0 == 0) & (q >= kv), ["goes from 0 to 63"]),
    "by what a tensor holds": (lambda b, h, q, kv: LINE[WHICH[q]] >= LINE[0], ["index 0 of `LINE` goes from 0 to 8"]),
    "an inner one": (lambda b, h, q, kv: LINE[WHICH[q + 1] % 8] == 0, ["index 0 of `WHICH` goes from 1 to 128"]),
    "a choice": (lambda b, h, q, kv: LINE[:2][(q > kv).int() + (q > kv + 99).int() * 1] == 0, ["is 2 at q = 100"]),
}


@pytest.mark.parametrize("name", LEAVING)
def test_an_index_that_leaves_its_tensor(name):
    fn, seen = LEAVING[name]
    mask = fs.from_mask_mod(fn)
    refused(lambda: mask.dense(128, batch=1, heads=2))
    refused(lambda: fs.block_map(mask, 128, batch=1, heads=2, block_size=16), *seen)
    refused(lambda: fs.create_block_mask(fn, 1, 2, 128, 128, device="cpu"), *seen)
    refused(lambda: fs.is_empty(mask, 128, batch=1, heads=2), *seen)
    refused(lambda: fs.equals(mask, fs.causal(), 128, batch=1, heads=2), *seen)
    for backend in BACKENDS:
        refused(lambda backend=backend: fs.compile(mask, backend=backend, block_size=16)(*qkv(128)), *seen)


@pytest.mark.parametrize("length", [100, 64, 1])
def test_at_the_edge_nothing_is_refused(length):
    """The same tables where they are just large enough, also from the back."""
    for fn in (
        lambda b, h, q, kv: CHOSEN[b, h, q // 25, kv // 25],
        lambda b, h, q, kv: FLAT[q // 25, -1 - kv // 25] | (q == kv),
        lambda b, h, q, kv: LINE[q // 14 - kv // 14] < 2,
        lambda b, h, q, kv: LINE[torch.where(q - kv < 8, (q - kv).clamp(min=-8), 0)] < 2,
    ):
        mask = fs.from_mask_mod(fn)
        kept = mask.dense(length, batch=1, heads=2)
        made = fs.block_map(mask, length, batch=1, heads=2, block_size=16)
        assert torch.equal(made.kinds().expand(1, 2, -1, -1), block_kinds(kept, 16, 16))


sizes = st.integers(1, 40)


@settings(max_examples=300, deadline=None)
@given(integers, integers, sizes, sizes, st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(0, 9))
def test_refused_exactly_where_the_reference_refuses(first, second, rows, columns, q_len, kv_len, guarded, seed):
    """Random indices into a random table: an error in both, or the same pairs."""
    text = f"chosen[{first.ours}, {second.ours}]" + (" & (q - kv < 3)" if guarded else "")
    held = tables(max(q_len, kv_len, 4), 2, 3, seed)
    mask = make_mask(Written("chosen: bool[_, _]; " + text, ""), held)
    mask = mask(chosen=torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5)
    sizes = {"batch": 2, "heads": 3}
    try:
        kept = mask.dense(q_len, kv_len, **sizes)
    except fs.FlexSpecError as error:
        assert error.code == "FS024"
        refused(lambda: fs.block_map(mask, q_len, kv_len, block_size=(16, 8), **sizes))
        refused(lambda: fs.is_empty(mask, q_len, kv_len, **sizes))
        return
    made = fs.block_map(mask, q_len, kv_len, block_size=(16, 8), **sizes)
    wanted = block_kinds(kept, 16, 8)
    assert torch.equal(made.kinds().expand_as(wanted), wanted)


def test_padding_of_an_order_is_no_token():
    """The padded canvas has 6 x 8 places; the table has a row for each token, and no more."""
    canvas, rows = fs.Canvas(h=5, w=7), torch.arange(35) % 4

    @fs.mask(canvas=canvas)
    def near(q, kv):
        return (rows[q] == rows[kv]) & (rows[q.h * 7 + 6 - q.w] <= rows[q - q.w]) & (rows[:5][q.h] > 0)

    for order in (None, fs.tiled(canvas, h=2, w=4), fs.dilated(canvas, 3), fs.hilbert(canvas), fs.zigzag(4)):
        at = torch.arange(35) if order is None else order.permutation(35)
        token = at.clamp(min=0)
        kept = near.dense(35)[0, 0][token][:, token] & (at >= 0) & (at >= 0)[:, None]
        made = fs.block_map(near, 35, order=order, block_size=8)
        assert torch.equal(made.kinds(), block_kinds(kept[None, None], 8, 8))
        refused(lambda order=order: fs.block_map(near & (lambda b, h, q, kv: rows[q + 1] > 0), 35, order=order))


by_distance = fs.score(lambda score, q, kv: score + BIAS[(q - kv).abs()])
by_class = fs.score(lambda score, q: score * BIAS[LINE[q // 10] * 24])


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_checked_too(backend):
    attend = fs.compile(fs.Attention(fs.causal(), [by_distance]), backend=backend)
    assert attend(*qkv(50)).isfinite().all()
    refused(lambda: attend(*qkv(51)), "index 0 of `BIAS` is 50 at q = 0, kv = 50, its size is 50")
    small = LINE.clone()
    by_small = fs.score(lambda score, q: score * BIAS[small[q // 10] * 24])
    attend = fs.compile(fs.Attention(fs.causal(), [by_small]), backend=backend)
    wanted = fs.reference_attention(attend.spec, *qkv(64)).float()
    torch.testing.assert_close(attend(*qkv(64)), wanted, atol=2e-5, rtol=2e-5)
    refused(lambda: attend(*qkv(81)), "index 0 of `small` goes from 0 to 8")
    small[6] = 3  # the same tensor with other values, at a size that was checked
    refused(lambda: attend(*qkv(64)), "index 0 of `BIAS` goes from 0 to 72, its size is 50")


def test_an_index_from_the_score_must_be_clamped():
    rough = fs.score(lambda score: score + BIAS[(score * 4).int() + 20])
    refused(lambda: fs.compile(fs.Attention(scores=[rough]), backend="flex")(*qkv(40)), "computed from the score")
    held = fs.score(lambda score: score + BIAS[((score * 4).int() + 20).clamp(0, 49)])
    attend = fs.compile(fs.Attention(scores=[held]), backend="flex")
    torch.testing.assert_close(
        attend(*qkv(40)), fs.reference_attention(attend.spec, *qkv(40)).float(), atol=1e-2, rtol=1e-2
    )


def test_a_repeated_call_checks_nothing(monkeypatch):
    asked = []
    inside = indices._surely_inside
    monkeypatch.setattr(indices, "_surely_inside", lambda *args: asked.append(args[0]) or inside(*args))
    spec = fs.Attention(fs.document() & (lambda b, h, q, kv: LINE[(q - kv) % 8] < 2), [by_distance, by_class])
    attend = fs.compile(spec, backend="reference")
    ids = (torch.arange(48) // 20)[None]
    attend(*qkv(48), document_id=ids)
    assert len(asked) == 2 * 2 + 1 + 3  # batch and position of two ids, the remainder, the scores' own
    attend(*qkv(48), document_id=ids)
    assert len(asked) == 8
    attend(*qkv(40), document_id=ids[:, :40])
    assert len(asked) == 16


def test_on_the_device_positions_and_sizes_are_checked():
    """Nothing is read back there: what a tensor holds stays unknown, and a clamp or a remainder holds it in."""
    for name in ("a table of blocks", "of both sides", "past the back", "the last head", "multiplied away"):
        fn, seen = LEAVING[name]
        refused(lambda fn=fn: fs.create_block_mask(fn, 1, 2, 128, 128, device="cpu", exact=False), *seen)
        attend = fs.compile(fn, backend="flex", exact=False)
        refused(lambda attend=attend: attend(*qkv(128)), *seen)
    for fn in (lambda b, h, q, kv: LINE[WHICH[q] % 8] == 0, lambda b, h, q, kv: LINE[WHICH[q - kv].clamp(-8, 7)] > 1):
        attend = fs.compile(fn, backend="flex", exact=False)
        wanted = fs.reference_attention(fs.from_mask_mod(fn), *qkv(128)).float()
        torch.testing.assert_close(attend(*qkv(128)), wanted, atol=2e-5, rtol=2e-5)
    of_one_side = LEAVING["by what a tensor holds"][0]
    refused(lambda: fs.create_block_mask(of_one_side, 1, 2, 128, 128, device="cpu", exact=False), "index 8 is out of")
