"""FLASH on a machine without its GPU: what is refused and why, and what reaches torch where nothing is."""

import pytest
import torch
from flexspec.compiler.backends import flash, flex
from flexspec.compiler.backends.registry import BACKENDS, chosen
from torch.torch_version import TorchVersion

import flexspec as fs

IDS = torch.arange(300)[None] // 90
TABLE = torch.randn(2, 301)
HEIGHT = torch.randn(300, dtype=torch.float64)


@pytest.fixture
def hopper(monkeypatch):
    """Taken for one with flash-attn-4: torch is what is installed."""
    monkeypatch.setattr(flash, "_capability", lambda device: 9)
    monkeypatch.setattr(flash, "_package", lambda: True)


def qkv(length=300, dim=64, dtype=torch.bfloat16, grad=False, v_dim=None):
    dims = (dim, dim, v_dim or dim)
    return [torch.randn(1, 2, length, each, dtype=dtype, requires_grad=grad) for each in dims]


def reasons(spec, tensors, *, block_size=128, return_lse=False, exact=True, **values):
    """What FLASH has against a call."""
    attend = fs.compile(spec, backend="flash", block_size=block_size, exact=exact)
    call = attend.call_of(*tensors, return_lse, "logical", values, None, None)
    return flash.FLASH.reasons_against(call)


GOOD = {
    "causal": fs.causal(),
    "documents": fs.causal() & fs.document(IDS),
    "everything": fs.everything(),
    "alibi": fs.Attention(fs.causal_window(70), [fs.alibi(), fs.softcap(30.0)]),
    "a remainder of positions": fs.mask(lambda q, kv: q % 7 >= kv % 5),
    "a weight": fs.Attention(weight=fs.sink_logit(torch.zeros(2))),
}


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_held_against_what_torch_takes(name, hopper):
    assert reasons(GOOD[name], qkv()) == []
    assert reasons(GOOD[name], qkv(dim=128), block_size=(256, 128)) == []


def test_gradients_of_q_k_and_v(hopper):
    assert reasons(GOOD["causal"], qkv(grad=True)) == []
    assert reasons(GOOD["alibi"], qkv(grad=True)) == []


BAD = {
    "float32": (fs.causal(), {"dtype": torch.float32}, {}, "float16 and bfloat16, not in torch.float32"),
    "narrow heads": (
        fs.causal(),
        {"dim": 8, "v_dim": 16},
        {},
        "head_dim is 8; here FLASH takes multiples of 8 from 16 to 128",
    ),
    "wide heads": (fs.causal(), {"dim": 192, "v_dim": 128}, {}, "head_dim is 192"),
    "odd values": (fs.causal(), {"v_dim": 20}, {}, "v's head_dim is 20"),
    "small blocks": (fs.causal(), {}, {"block_size": 64}, "9.x FLASH takes block_size=(128, 128) or (256, 128)"),
    "long blocks": (fs.causal(), {}, {"block_size": (384, 128)}, "blocks are 384 x 128"),
    "nothing": (fs.nothing(), {}, {}, "this one keeps nothing"),
    "remainders": (fs.mask(lambda q, kv: (q - kv) % 4 < 2), {}, {}, "an operand of % may be negative"),
    "float remainders": (
        fs.Attention(scores=[lambda score, b, h, q, kv: score % 2.0]),
        *({}, {}, "an operand of % may be negative"),
    ),
    "large integers": (fs.mask(lambda q, kv: q * 10**8 >= kv), {}, {}, "FLASH computes integers in 32 bits"),
    "large in a score": (
        fs.Attention(scores=[lambda score, b, h, q, kv: score + q * 10**8]),
        *({}, {}, "FLASH computes integers in 32 bits"),
    ),
    "ranges unknown": (fs.document(IDS), {}, {"exact": False}, "their ranges are not known"),
    "64-bit floats": (fs.mask(lambda q, kv: HEIGHT[kv] < HEIGHT[q]), {}, {}, "no 64-bit floats"),
    "rounding": (
        fs.Attention(scores=[lambda score, b, h, q, kv: torch.round(score)]),
        *({}, {}, f"torch {torch.__version__} cannot print round for FLASH"),
    ),
    "a trained table": (
        fs.Attention(scores=[fs.relative_bias(fs.Input("bias", dims=("heads", 301), dtype="float"))]),
        *({}, {"bias": TABLE.clone().requires_grad_()}, "no gradient to bias, which a score reads: detach it"),
    ),
    "the lse's gradient": (fs.causal(), {"grad": True}, {"return_lse": True}, "no gradient of the lse"),
    "a weight's gradient": (GOOD["a weight"], {"grad": True}, {}, "no gradient of the lse"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_torch_would_refuse_later_or_compute_wrongly(name, hopper):
    spec, sizes, given, wanted = BAD[name]
    found = reasons(spec, qkv(**sizes), **given)
    assert len(found) == 1 and wanted in found[0]


def test_a_weights_own_number_is_read_by_a_score(hopper):
    spec = fs.Attention(weight=fs.sigmoid_weight(torch.zeros(2, requires_grad=True)))
    with torch.no_grad():
        (reason,) = reasons(spec, qkv())
    assert "FLASH gives no gradient to " in reason


def test_blackwell_has_two_tiles_of_queries(hopper, monkeypatch):
    for capability in (10, 11):
        monkeypatch.setattr(flash, "_capability", lambda device, seen=capability: seen)
        found = reasons(fs.causal(), qkv())
        assert found == [
            f"blocks are 128 x 128; on compute capability {capability}.x FLASH takes block_size=(256, 128)"
        ]
        assert reasons(fs.causal(), qkv(), block_size=(256, 128)) == []


@pytest.mark.parametrize("capability", [None, 8, 12])
def test_other_gpus(capability, hopper, monkeypatch):
    monkeypatch.setattr(flash, "_capability", lambda device: capability)
    (reason,) = reasons(fs.causal(), qkv())
    seen = "the tensors are on none" if capability is None else f"this one has {capability}.x"
    assert reason == f"FLASH with block lists needs an NVIDIA GPU of compute capability 9.x to 11.x, and {seen}"


def test_capability_of_what_is_no_nvidia_gpu(monkeypatch):
    assert flash._capability(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 4))
    assert flash._capability(torch.device("cuda")) == 9
    monkeypatch.setattr(torch.version, "hip", "6.2")  # an MI300 calls itself 9.4
    assert flash._capability(torch.device("cuda")) is None


def test_torch_and_the_package(hopper, monkeypatch):
    spec = fs.causal()
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.10.0"))
    assert reasons(spec, qkv()) == ["FLASH needs torch 2.11 or newer, and this is 2.10.0"]
    for version in ("2.11.0+cu128", "2.12.1"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        assert reasons(spec, qkv()) == []
        assert reasons(spec, qkv(), return_lse=True) == [f"torch {version} takes FLASH's natural lse for one of base 2"]
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.13.0"))
    assert reasons(spec, qkv(), return_lse=True) == []
    monkeypatch.setattr(flash, "_package", lambda: False)
    assert reasons(spec, qkv()) == ["the package flash-attn-4 (flash_attn.cute) is not installed"]


def test_deterministic_algorithms(hopper):
    torch.use_deterministic_algorithms(True)
    try:
        assert reasons(fs.causal(), qkv()) == []
        (reason,) = reasons(fs.causal(), qkv(grad=True))
        assert "deterministic algorithms are asked for" in reason
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch warns itself, and runs
        assert reasons(fs.causal(), qkv(grad=True)) == []
    finally:
        torch.use_deterministic_algorithms(False)


def test_operators_are_those_of_torchs_printer():
    """By the text of torch's class: what it does not define itself is inherited from a printer of C++."""
    assert flash.OPS.keys() - flash._printable() == {"ceil", "round", "trunc", "sign"}


def test_what_reaches_flex_attention(hopper, monkeypatch):
    """The option, the lists of flex, and none of the facts that Triton's kernels are told."""
    seen = {}

    def record(q, k, v, score_mod, block_mask, scale, gqa, kernel_options, return_aux=None):
        seen.update(kernel_options=kernel_options, block_mask=block_mask, score_mod=score_mod)
        out = torch.zeros_like(q)
        return (out, flex.torch_flex.AuxOutput(lse=q[..., 0].float())) if return_aux else out

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(flex.torch_flex, "flex_attention", record)
    flex._functions.cache_clear()
    attend = fs.compile(fs.Attention(fs.causal(), [fs.alibi()]), backend="flash")
    out, lse = attend(*qkv(), return_lse=True)
    flex._functions.cache_clear()
    assert out.shape == (1, 2, 300, 64) and lse.shape == (1, 2, 300)
    assert seen["kernel_options"] == {"BACKEND": "FLASH"} and seen["score_mod"] is not None
    wanted = attend.block_map(300, batch=1, heads=2).to_flex()
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(seen["block_mask"], name), getattr(wanted, name))
    assert seen["block_mask"].BLOCK_SIZE == (128, 128)


def test_the_error_names_each_reason_and_a_backend_that_can():
    with pytest.raises(fs.FlexSpecError) as error:
        fs.compile(fs.causal(), backend="flash")(*qkv(dtype=torch.float32))
    assert error.value.code == "FS042"
    assert "flash cannot run this: FLASH with block lists needs an NVIDIA GPU" in str(error.value)
    assert "float16 and bfloat16, not in torch.float32" in str(error.value)
    assert "'reference'" in error.value.fix and "flash" not in error.value.fix


def test_auto_does_not_choose_it():
    assert flash.FLASH in BACKENDS and flash.FLASH not in chosen("auto") and chosen("flash") == (flash.FLASH,)


def test_explain_says_what_is_passed_on():
    text = fs.compile(fs.causal_window(8), backend="flash").explain(300)
    assert "backend flash\n" in text and "kernel_options={'BACKEND': 'FLASH'}" in text
    assert "integers fit 32 bits: yes" in text and "BLOCKS_ARE_CONTIGUOUS" not in text
