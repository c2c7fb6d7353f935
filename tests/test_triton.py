"""Our own kernels against the reference: in Triton's interpreter, or on a GPU where there is one."""

import math

import pytest
import torch

import flexspec as fs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CANVAS = fs.Canvas(t=2, h=5, w=7)
IDS = torch.tensor([[0] * 40 + [1] * 37 + [-1] * 13, [0] * 11 + [1] * 60 + [2] * 19])
FAR = torch.tensor([3, 9, 40, 90])


def qkv(q_len, kv_len=None, heads=2, kv_heads=2, head_dim=16, v_dim=None, batch=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (heads, q_len, head_dim),
        (kv_heads, kv_len or q_len, head_dim),
        (kv_heads, kv_len or q_len, v_dim or head_dim),
    )
    return [torch.randn(batch, *shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def same_as_reference(spec, q, k, v, block_size=32, order=None, **values):
    """Output and lse of both; returns the output."""
    attend = fs.compile(spec, backend="triton", block_size=block_size, order=order)
    out, lse = attend(q, k, v, return_lse=True, **values)
    exact = fs.compile(spec, backend="reference", order=order)
    wanted, wanted_lse = exact(q.double(), k.double(), v.double(), return_lse=True, **values)
    near = TOLERANCE[q.dtype]
    assert out.dtype == q.dtype and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), wanted, atol=near, rtol=near)
    torch.testing.assert_close(lse.double(), wanted_lse.double(), atol=near, rtol=near)
    return out


MASKS = {
    "everything": fs.everything(),
    "nothing": fs.nothing(),
    "causal": fs.causal(),
    "window": fs.causal_window(20),
    "sink and window": fs.sink_window(sink=3, window=20),
    "dilated": fs.dilated_window(4, 3),
    "documents": fs.causal() & fs.document(IDS),
    "by head": fs.mask(lambda h, q, kv: (q - kv).abs() <= FAR[h]),
    "by batch": fs.mask(lambda b, q, kv: q + b * 5 >= kv),
    "floors of negative numbers": fs.mask(lambda q, kv: ((q - kv) // 7 - (q - kv) % 5) % 3 == 0),
    "floats": fs.mask(lambda q, kv: torch.round((q / 3 - kv * 0.7) % 5) < 3),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    same_as_reference(MASKS[name], *qkv(90, heads=4, kv_heads=2))


@pytest.mark.parametrize("sizes", [(1, 90), (33, 7), (90, 150), (64, 64)])
@pytest.mark.parametrize("block_size", [16, (32, 64)])
def test_lengths(sizes, block_size):
    same_as_reference(fs.sink_window(sink=3, window=20), *qkv(*sizes), block_size=block_size)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("head_dim", "v_dim"), [(16, 16), (80, 80), (40, 72)])
def test_channels(dtype, head_dim, v_dim):
    same_as_reference(fs.causal(), *qkv(50, heads=2, kv_heads=1, head_dim=head_dim, v_dim=v_dim, dtype=dtype))


SCORES = {
    "softcap": fs.softcap(5.0),
    "alibi": fs.alibi(),
    "relative bias": fs.relative_bias(torch.randn(4, 21, generator=torch.Generator().manual_seed(1))),
    "several": [fs.softcap(5.0), fs.alibi(), lambda s, b, h, q, kv: s * torch.sigmoid(s) + (q - kv) / 50],
}


@pytest.mark.parametrize("name", SCORES)
def test_scores(name):
    some = SCORES[name] if isinstance(SCORES[name], list) else [SCORES[name]]
    same_as_reference(fs.Attention(mask=fs.causal_window(40), scores=some), *qkv(70, heads=4))


def test_queries_that_keep_nothing():
    q, k, v = qkv(50)
    attend = fs.compile(fs.padding([20, 45]), backend="triton", block_size=16)
    out, lse = attend(q, k, v, return_lse=True)
    assert out[0, :, 20:].eq(0).all() and lse[0, :, 20:].eq(-math.inf).all()
    assert out[1, :, :45].ne(0).all()


def test_orders_and_strides():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv(70))
    mask = fs.neighborhood(CANVAS, window={"t": 1, "h": 3, "w": 5})
    same_as_reference(mask, q, k, v, order=fs.tiled(CANVAS, t=1, h=2, w=4), block_size=16)


def test_values_given_at_the_call():
    window = fs.mask(lambda q, kv, *, window=8: (q >= kv) & (q - kv < window))
    q, k, v = qkv(60)
    for size in (5, 33):
        same_as_reference(window & fs.document(), q, k, v, window=size, document_id=torch.arange(60)[None] // size)


def test_ids_that_change_in_place():
    """What a map keeps of its ids is of the time when it was made."""
    attend = fs.compile(fs.document(), backend="triton", block_size=16)
    q, k, v = qkv(60, batch=1)
    ids = torch.arange(60, dtype=torch.int32)[None] // 25
    before = ids.clone()
    for given, change in ((ids, 7), (before, 0), (ids, 0)):
        wanted = fs.reference_attention(fs.document(), q, k, v, document_id=given)
        torch.testing.assert_close(attend(q, k, v, document_id=given), wanted.float(), atol=2e-5, rtol=2e-5)
        if change:
            ids //= change
