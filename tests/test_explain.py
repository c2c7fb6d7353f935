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
