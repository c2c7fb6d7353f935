"""`explain` as golden text, and its facts against counting."""

import re

import torch

import flexspec as fs

CANVAS = fs.Canvas(h=12, w=20)
SPECS = {
    "sink_window": (fs.sink_window(sink=4), {"q_len": 1000, "window": 256}, {}),
    "documents": (
        fs.Attention(mask=fs.causal() & fs.document(), scores=[fs.softcap(30.0), fs.alibi()]),
        {"q_len": 300, "batch": 2, "heads": 4, "document_id": torch.arange(300).expand(2, -1) // 77},
        {},
    ),
    "sliding_tile": (
        fs.sliding_tile(CANVAS, window=12, tile=4),
        {"q_len": 240},
        {"order": fs.tiled(CANVAS, h=4, w=4), "block_size": 16},
    ),
}


def test_golden_texts(golden):
    for name, (spec, sizes, options) in SPECS.items():
        text = fs.compile(spec, **options).explain(**sizes, latex=name == "sink_window")
        golden(f"explain_{name}.txt", re.sub(r"  \([\d.]+ ms\)", "", text) + "\n")


def test_facts_are_counted():
    for spec, sizes, options in SPECS.values():
        facts = fs.compile(spec, **options).facts(**sizes)
        mask = spec.mask if isinstance(spec, fs.Attention) else spec
        kept = mask.dense(**sizes)
        assert facts["token_density"] * _padded(options, kept) == kept.float().mean()
        later = torch.ones(kept.shape[-2:], dtype=torch.bool).triu(1)
        assert facts["proofs"]["causal"]["holds"] == (not (kept & later).any())
        attends = facts["proofs"]["every query attends"]
        assert attends["holds"] == bool(kept.any(-1).all())


def _padded(options, kept):
    """Pairs of memory positions per pair of tokens."""
    length = kept.shape[-1]
    return (options["order"].padded(length) / length) ** 2 if "order" in options else 1


def test_a_query_without_keys_is_named():
    lonely = fs.mask(lambda q, kv: (q >= kv) & (q != 777) | (kv < 0))
    proof = fs.compile(lonely).facts(1000)["proofs"]["every query attends"]
    assert proof == {"holds": False, "counterexample": (0, 0, 777, None)}
    ahead = fs.mask(lambda h, q, kv: (q >= kv) | (h == 2) & (q == 500) & (kv == 501))
    proof = fs.compile(ahead).facts(1000, heads=4)["proofs"]["causal"]
    assert proof == {"holds": False, "counterexample": (0, 2, 500, 501)}


def test_what_kernels_rely_on_is_counted():
    for spec, sizes, options in SPECS.values():
        attend = fs.compile(spec, **options)
        values = {name: value for name, value in sizes.items() if name != "q_len"}
        made = attend.block_map(sizes["q_len"], **values)
        kinds = made.kinds()
        for side, ragged in (
            (kinds[..., -1, :], made.q_len % made.block_q),
            (kinds[..., -1], made.kv_len % made.block_kv),
        ):
            side[(side == 2) & bool(ragged)] = 1  # as torch's lists have them
        kinds = kinds.tolist()
        facts = attend.facts(**sizes)["relied_on"]
        rows = [row for batch in kinds for head in batch for row in head]
        columns = [list(column) for batch in kinds for head in batch for column in zip(*head, strict=True)]
        assert facts["fwd_BLOCKS_ARE_CONTIGUOUS"] == all(map(_one_run, rows))
        assert facts["bwd_BLOCKS_ARE_CONTIGUOUS"] == all(map(_one_run, columns))
    squares = fs.compile(fs.mask(lambda q, kv: q * q > kv))
    assert squares.facts(46_000)["relied_on"]["integers fit 32 bits"]
    assert not squares.facts(47_000)["relied_on"]["integers fit 32 bits"]
    assert "run: kv side" not in fs.compile(fs.causal(), backend="reference").explain(300)


def _one_run(line):
    text = "".join(map(str, line))
    return all(len(re.findall(f"{kind}+", text)) <= 1 for kind in "12")
