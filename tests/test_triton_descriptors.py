"""The forward kernel with keys and values by descriptors (TMA), p v in its own pass or a pass late: against a dense
softmax, and the same bits as with pointers.
"""

import pytest
import torch
from flexspec.compiler.backends.triton import launch, tuning
from test_triton import DEVICE, TOLERANCE, qkv
from test_triton_lists import CASES, SCORES, biased, close, dense

import flexspec as fs

HALVES = [torch.float16, torch.bfloat16]
HOLES = CASES["blocks with holes, ragged"][:2]


@pytest.fixture(params=[False, True], ids=["in time", "late"])
def described(request, monkeypatch):
    """Calls by descriptors; returns for each tensor that asked whether it may be described."""
    choose, alike, answers = tuning.config_of, launch.described_alike, []

    def config_of(kernel, *given):
        forward = kernel == "forward"
        return choose(kernel, *given)._replace(tma=forward, late=forward and request.param)

    monkeypatch.setattr(tuning, "config_of", config_of)
    monkeypatch.setattr(launch, "described_alike", lambda tensor: (answers.append(alike(tensor)), answers[-1])[1])
    return answers


@pytest.fixture
def by_pointers(monkeypatch):
    def call(attend, *tensors):
        with monkeypatch.context() as patch:
            patch.setattr(launch, "described_alike", lambda tensor: False)
            return attend(*tensors, return_lse=True)

    return call


@pytest.mark.parametrize("listed", [True, False], ids=["lists", "runs"])
@pytest.mark.parametrize("name", CASES)
def test_masks(name, listed, described, by_pointers, monkeypatch):
    mask, keep, order, block_size = CASES[name]
    monkeypatch.setattr(launch, "takes_lists", lambda block_map: listed)
    q, k, v = qkv(*keep.shape[1:], heads=max(2, len(keep)), kv_heads=1, batch=1, dtype=torch.float16)
    attend = fs.compile(mask, backend="triton", block_size=block_size, order=order)
    found = attend(q, k, v, return_lse=True)
    assert described == [True, True]
    for mine, wanted in zip(found, dense(q, k, v, keep), strict=True):
        close(mine, wanted, TOLERANCE[q.dtype])
    assert all(map(torch.equal, found, by_pointers(attend, q, k, v)))  # the same sums in the same order


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("head_dim", "v_dim"), [(40, 24), (64, 128), (8, 72)])
def test_scores_groups_and_channels(head_dim, v_dim, dtype, described):
    mask, keep = HOLES
    q, k, v = qkv(*keep.shape[1:], heads=4, kv_heads=2, head_dim=head_dim, v_dim=v_dim, batch=2, dtype=dtype)
    attend = fs.compile(fs.Attention(mask, SCORES), backend="triton", block_size=32)
    for mine, wanted in zip(attend(q, k, v, return_lse=True), dense(q, k, v, keep, biased), strict=True):
        close(mine, wanted, TOLERANCE[dtype])
    assert described == [True, True]


def test_a_sink_and_rows_that_keep_nothing(described):
    mask, keep = HOLES
    assert not keep.any(-1).all()
    q, k, v = qkv(*keep.shape[1:], heads=4, kv_heads=4, batch=1, dtype=torch.float16)
    out = fs.compile(fs.Attention(mask, weight=fs.sink_logit(0.5)), backend="triton", block_size=32)(q, k, v)
    plain, lse = dense(q, k, v, keep)
    close(out, plain * torch.sigmoid(lse - 0.5)[..., None], TOLERANCE[q.dtype])
    assert (out[~keep.any(-1).to(DEVICE)[None]] == 0).all()


def test_values_beyond_the_keys_are_not_read(described):
    """What lies behind the last key may be anything: a pass late begins with a tile past the end."""
    mask, keep = HOLES
    q, k, v = qkv(keep.shape[1], 200, heads=4, kv_heads=2, batch=1, dtype=torch.float16)
    k[:, :, 181:], v[:, :, 181:] = torch.nan, torch.inf
    k, v = k[:, :, :181], v[:, :, :181]
    found = fs.compile(mask, backend="triton", block_size=32)(q, k, v)
    close(found, dense(q, k, v, keep)[0], TOLERANCE[q.dtype])
    assert described == [True, True]


def moved(x):
    """The same numbers, one element further in memory."""
    return torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape)


@pytest.mark.parametrize(
    "laid",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack([x, x], -2).flatten(-2)[..., : x.shape[3]],
        lambda x: x[:1].expand(2, -1, -1, -1),
    ],
    ids=["tokens before heads", "rows apart", "one for the batch"],
)
def test_strides_that_may_be_described(laid, described):
    strided(laid, described, [True, True])


@pytest.mark.parametrize(
    "laid",
    [
        moved,
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.cat([x, x[..., :3]], -1)[..., :16],
        lambda x: x[:, :, :1].expand(-1, -1, x.shape[2], -1),
    ],
    ids=["odd start", "channels apart", "odd rows", "one token"],
)
def test_strides_that_may_not(laid, described):
    strided(laid, described, [False])


def strided(laid, described, wanted):
    """k as laid out, v as well where k may be described: the second is not asked else."""
    mask, keep = HOLES
    q, k, v = qkv(*keep.shape[1:], heads=4, kv_heads=2, batch=2, dtype=torch.float16)
    k, v = laid(k), laid(v)
    close(fs.compile(mask, backend="triton", block_size=32)(q, k, v), dense(q, k, v, keep)[0], TOLERANCE[q.dtype])
    assert described == wanted
