"""Every kernel once, at odd lengths: `compute-sanitizer --error-exitcode 1 python tests/sanitized.py`."""

import torch

import flexspec as fs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Q_LEN, KV_LEN, PAGE = 131, 300, 24


def tensors(*shapes):
    return [torch.randn(shape, device=DEVICE, dtype=torch.float16, requires_grad=True) for shape in shapes]


def main():
    table = torch.randn(4, 21, device=DEVICE, requires_grad=True)
    ids = (torch.arange(KV_LEN, device=DEVICE) // 90)[None].expand(2, -1)
    spec = fs.Attention(fs.sink_window(sink=3, window=50) & fs.document(ids), [fs.relative_bias(table)])
    q, k, v = tensors((2, 4, Q_LEN, 40), (2, 2, KV_LEN, 40), (2, 2, KV_LEN, 72))
    for deterministic in (None, True, False):
        attend = fs.compile(spec, backend="triton", block_size=32, deterministic=deterministic)
        attend(q, k, v).square().sum().backward()
    sunk = fs.Attention(fs.causal(KV_LEN - 3), weight=fs.sink_logit(torch.zeros(4, device=DEVICE)))
    attend = fs.compile(sunk, backend="triton", block_size=32)
    with torch.no_grad():
        attend(q[:, :, :3], k, v)
        pages = tensors((26, PAGE, 2, 40), (26, PAGE, 2, 72))
        where = torch.arange(26, device=DEVICE, dtype=torch.int32).view(2, 13)
        attend(q[:, :, :3], *pages, page_table=where, kv_len=KV_LEN)
        with_e4m3 = DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9)
        for precision in ("int8", "fp8") if with_e4m3 else ("int8",):
            fs.compile(spec, backend="triton", block_size=32, precision=precision)(q, k, v)
            attend(q[:, :, :3], *fs.quantise(k, v, precision))
            in_pages = (
                x._replace(numbers=x.numbers.transpose(1, 2), scale=x.scale.transpose(1, 2))
                for x in fs.quantise(*(x.transpose(1, 2) for x in pages), precision, mean=k[:1].mean(2, keepdim=True))
            )
            attend(q[:, :, :3], *in_pages, page_table=where, kv_len=KV_LEN)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
