"""Fitting patterns to observed maps: masses and densities against plain loops, planted patterns, shapes, errors."""

import math

import oracle
import pytest
import torch

import flexspec as fs

IMAGE = fs.Canvas(h=5, w=7)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def planted(*masks, length, floor=0.02):
    """One head for each mask: random weights where it keeps, a tenth of a percent's order of them elsewhere."""
    kept = torch.stack([mask.dense(length)[0, 0] for mask in masks])
    return noise(len(masks), length, length) * (kept + floor)


def mass_by_loops(weights, kept):
    """Each row with weight counts the same: the mean over rows of kept weight over all weight."""
    shares = []
    for row, keep in zip(weights.tolist(), kept, strict=True):
        if total := math.fsum(row):
            shares.append(math.fsum(w for w, k in zip(row, keep, strict=True) if k) / total)
    return sum(shares) / len(shares) if shares else 1.0


def blocks_by_loops(kept, block_q, block_kv):
    """Blocks with a kept pair, and all blocks."""
    rows, columns = len(kept), len(kept[0])
    corners = [(i, j) for i in range(0, rows, block_q) for j in range(0, columns, block_kv)]
    full = [any(any(row[j : j + block_kv]) for row in kept[i : i + block_q]) for i, j in corners]
    return sum(full), len(corners)


def in_memory(kept, order):
    """The pairs as they lie in memory, padding False."""
    rows, columns = (order.permutation(length).tolist() for length in (len(kept), len(kept[0])))
    return [[q >= 0 and kv >= 0 and bool(kept[q][kv]) for kv in columns] for q in rows]


def check(fit, weights, q_len, kv_len, block, heads):
    """Everything a fit says of itself, again from its mask on every pair."""
    kept = fit.mask.dense(q_len, kv_len, heads=heads)[0]
    kept = kept[fit.head if len(kept) > 1 else 0].tolist()
    assert fit.mass == pytest.approx(mass_by_loops(weights[fit.head], kept), abs=1e-12)
    assert fit.pair_density == pytest.approx(sum(map(sum, kept)) / (q_len * kv_len), abs=1e-12)
    dense = blocks_by_loops(kept, *block)[1]
    lying = kept if fit.order is None else in_memory(kept, fit.order)
    assert fit.block_density == pytest.approx(blocks_by_loops(lying, *block)[0] / dense, abs=1e-12)


@pytest.mark.parametrize("by", ["blocks", "pairs"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_trial_says_what_loops_say(by, causal):
    weights = noise(2, 45, 45)
    weights[0] *= weights[0] > 0.5
    weights[1, 3:9] = 0  # rows without weight do not count
    if causal:
        weights = weights.tril()
    fits = fs.fit(weights, budget=0.3, by=by, block_size=(8, 5))
    for head, trials in enumerate(fits.trials):
        assert len({fit.family for fit in trials}) > 5
        ranks = [round(fit.mass, 9) for fit in trials]
        assert ranks == sorted(ranks, reverse=True)
        for fit in trials:
            assert fit.head == head and fit.density <= 0.3
            assert not causal or fit.mask.is_causal(45)
            check(fit, weights, 45, 45, (8, 5), 2)
        assert fits[head] is trials[0] and fits[head].mass >= max(ranks) - 1e-9


def test_every_trial_on_a_canvas_says_what_loops_say():
    weights = noise(1, IMAGE.size, IMAGE.size)
    fits = fs.fit(weights, budget=0.5, canvas=IMAGE, block_size=4)
    orders = {str(fit.order) for fit in fits.trials[0]}
    assert {"None", "axes(w, h)", "tiled(h=2, w=2)"} <= orders
    for fit in fits.trials[0]:
        assert fit.density <= 0.5
        check(fit, weights, IMAGE.size, IMAGE.size, (4, 4), 1)


def test_q_len_other_than_kv_len():
    weights = noise(2, 21, 50)
    fits = fs.fit(weights, budget=0.35, block_size=(4, 8))
    for trials in fits.trials:
        for fit in trials:
            check(fit, weights, 21, 50, (4, 8), 2)


def test_planted_patterns_are_found():
    length = 160
    masks = [fs.causal_window(24), fs.sink_window(sink=4, window=8), fs.strided(20), fs.chunked(16) & fs.causal()]
    weights = planted(*masks, length=length).tril()
    fits = fs.fit(weights, budget=0.16, by="pairs", block_size=8)
    assert fits[0].family == "causal_window"
    assert fits[1].family in ("sink_window(sink=4)", "sink_window(sink=8)")
    assert fits[2].mask == fs.strided(20)
    named = fs.fit(weights, [fs.causal_window, fs.sink_window(sink=4), fs.chunked], budget=0.2, block_size=8)
    assert [fit.family for fit in named][:2] == ["causal_window", "sink_window(sink=4)"]


def test_planted_patterns_on_a_canvas_are_found_with_an_order():
    video = fs.Canvas(t=6, h=4, w=8)
    masks = [
        fs.axial(video, "t"),
        fs.neighborhood(video, window=3),
        fs.neighborhood(video, window={"t": 1, "h": 4, "w": 8}),
    ]
    fits = fs.fit(planted(*masks, length=video.size, floor=0), budget=0.17, canvas=video, block_size=8)
    everywhere = fs.axial(video, "t")
    assert fits[0].mass == 1.0 and everywhere.implies(fits[0].mask)
    assert fits[0].order is not None
    assert fits[1].family == "sliding_tile" or fits[1].family == "neighborhood"
    assert fits[2].mass == 1.0 and fits[2].mask.equals(masks[2]) and fits[2].order is None


def test_a_dilated_head_fits_under_its_stripes():
    dilated = fs.dilated_window(window=3, dilation=8)
    fits = fs.fit(planted(dilated, length=128, floor=0), budget=0.2, block_size=8)
    assert fits[0].mass == 1.0 and str(fits[0].order) == "striped(8)"
    assert dilated.implies(fits[0].mask, 128)


def test_heavy_columns_are_found_for_their_head():
    weights = 0.001 * noise(2, 64, 64)
    weights[0, :, 40] = weights[0, :, 9] = weights[1, :, 25] = 1
    fits = fs.fit(weights, budget=0.25, block_size=8)
    assert fits[0].family == fits[1].family == "columns"
    assert {9, 40} <= set(fits[0].mask.dense(64)[0, 0, 0].nonzero().flatten().tolist())
    assert fits[1].mask.dense(64)[0, 0, :, 25].all()
    assert fs.per_head(fits.masks).dense(64, heads=2)[0, 1].equal(fits[1].mask.dense(64)[0, 0])


@pytest.mark.parametrize("by", ["blocks", "pairs"])
@pytest.mark.parametrize("budget", [0.1, 0.33, 0.5, 1.0])
def test_the_largest_within_the_budget(by, budget):
    length, block = 37, (5, 3)
    weights = noise(length, length)
    for make, keep in ((fs.causal_window, oracle.causal_window), (fs.sliding_window, oracle.sliding_window)):
        within = []
        for window in range(1, length + 1):
            kept = oracle.matrix(lambda q, kv, w=window, keep=keep: keep(q, kv, w), length)
            kept_blocks, blocks = blocks_by_loops(kept, *block)
            density = kept_blocks / blocks if by == "blocks" else sum(map(sum, kept)) / length**2
            within += [(window, density)] if density <= budget else []
        if not within:
            continue
        fits = fs.fit(weights, [make], budget, by=by, block_size=block)
        assert max(fits.trials[0], key=lambda fit: fit.density).density == pytest.approx(within[-1][1])
        assert fits[0].mass == pytest.approx(
            mass_by_loops(weights, oracle.matrix(lambda q, kv, keep=keep: keep(q, kv, within[-1][0]), length))  # noqa: B023
        )


def test_a_family_that_does_not_grow_stays_within_the_budget():
    odd = fs.Family("odd", lambda n: fs.causal() if n == 4 else fs.causal_window(1), range(1, 9))
    fits = fs.fit(noise(24, 24), [odd], 0.3, block_size=2)  # the half of the largest is over it
    assert len(fits.trials[0]) == 3 and all(fit.density <= 0.3 for fit in fits.trials[0])


def test_ties_go_to_the_lower_density_then_to_the_first_named():
    weights = torch.eye(64)
    fits = fs.fit(weights, [fs.causal(), fs.causal_window(9), fs.sliding_window(0), fs.chunked(1)], 1.0, block_size=8)
    assert fits[0].mask == fs.sliding_window(0)
    assert [fit.mask.label for fit in fits.alternatives(0)][:1] == ["chunked(chunk=1)"]
    assert fits.cheapest(0.5)[0].mask == fs.sliding_window(0)


def test_cheapest():
    weights = planted(fs.causal_window(16), length=64, floor=0.001).tril()
    fits = fs.fit(weights, [fs.causal_window, fs.causal()], budget=1.0, block_size=4)
    enough = fits.cheapest(0.6)
    assert 0.6 <= enough[0].mass < 1 and enough[0].density < fits[0].density == fits.cheapest(2.0)[0].density


def test_booleans_logits_batches_and_integers():
    kept = fs.sink_window(sink=2, window=5).dense(40)[0, 0]
    candidates = [fs.causal_window, fs.sink_window(sink=2)]
    truth = mass_by_loops(kept.double(), fs.causal_window(8).dense(40)[0, 0].tolist())
    for given in (kept, kept.int(), kept.to(torch.bfloat16), kept.double()[None], kept[None, None]):
        fits = fs.fit(given, [fs.causal_window(8)], 1.0)
        assert len(fits) == 1 and fits[0].mass == pytest.approx(truth)
    logits = noise(3, 40, 40)
    logits[:, ~kept] = -torch.inf
    logits[0, 7] = -torch.inf  # a row that keeps nothing
    soft = fs.fit(1000 + logits, candidates, 0.5, softmax=True, block_size=8)
    weights = torch.softmax(logits.double(), -1).nan_to_num()
    for a, b in zip(soft, fs.fit(weights, candidates, 0.5, block_size=8), strict=True):
        assert a.mask == b.mask and a.mass == pytest.approx(b.mass, abs=1e-6)
    batch = noise(2, 3, 40, 40)
    whole, parts = (
        fs.fit(batch, candidates, 0.4, block_size=8),
        [fs.fit(x, candidates, 0.4, block_size=8) for x in batch],
    )
    for head in range(3):
        assert whole[head].mass == pytest.approx((parts[0][head].mass + parts[1][head].mass) / 2)


def test_chunks_of_rows_add_up(monkeypatch):
    from flexspec.compiler.fitting import observed, search

    weights = noise(3, 50, 33)
    whole = fs.fit(weights, budget=0.4, block_size=8)
    monkeypatch.setattr(observed, "CHUNK", 8 * 33 * 7)
    monkeypatch.setattr(search, "LIMIT", 7 * 33 * 2)
    monkeypatch.setattr(search, "WIDTH", 5)
    for a, b in zip(whole, fs.fit(weights, budget=0.4, block_size=8), strict=True):
        assert a.mask.label == b.mask.label and a.mass == pytest.approx(b.mass, abs=1e-12)
    assert whole.picture.sum() == pytest.approx(3 * 50)


def test_masks_that_differ_by_head():
    table = fs.per_head([fs.causal_window(3), fs.sliding_window(6), fs.causal_window(3)])
    weights = noise(3, 24, 24)
    fits = fs.fit(weights, [table], 1.0, block_size=4)
    for head, window in ((0, fs.causal_window(3)), (1, fs.sliding_window(6)), (2, fs.causal_window(3))):
        assert fits[head].mass == pytest.approx(mass_by_loops(weights[head], window.dense(24)[0, 0].tolist()))
        assert fits[head].density == pytest.approx(fs.block_map(window, 24, block_size=4).density)


def test_pooled_maps():
    """A pooled map: an entry counts where its block holds a kept pair; the last blocks are ragged."""
    block, q_len, kv_len = (8, 4), 43, 50
    weights = noise(2, 6, 13)
    fits = fs.fit(weights, budget=0.4, pooled=True, block_size=block, q_len=q_len, kv_len=kv_len)
    for trials in fits.trials:
        for fit in trials:
            kept = fit.mask.dense(q_len, kv_len, heads=2)[0]
            kept = kept[fit.head if len(kept) > 1 else 0].tolist()
            blocks = [
                [any(any(row[j : j + 4]) for row in kept[i : i + 8]) for j in range(0, kv_len, 4)]
                for i in range(0, q_len, 8)
            ]
            assert fit.order is None and fit.density <= 0.4
            assert fit.mass == pytest.approx(mass_by_loops(weights[fit.head], blocks))
            assert fit.density == pytest.approx(sum(map(sum, blocks)) / (6 * 13))


def test_a_pooled_map_of_a_canvas():
    image = fs.Canvas(h=12, w=9)
    pooled = fs.neighborhood(image, window={"h": 1, "w": 9}).dense(108)[0, 0].double()
    pooled = torch.nn.functional.pad(pooled, (0, 4, 0, 4)).unflatten(0, (14, 8)).unflatten(2, (14, 8)).sum((1, 3))
    fits = fs.fit(pooled, budget=0.3, canvas=image, pooled=True, block_size=8)
    assert fits[0].mass == pytest.approx(1.0) and fits.problem.q_len == 108


def test_causal_is_seen_by_blocks():
    causal = torch.ones(4, 4).tril()
    assert all(fit.mask.is_causal(32) for fit in fs.fit(causal, budget=0.9, pooled=True, block_size=8).trials[0])
    causal[1, 2] = 1e-9
    assert not all(fit.mask.is_causal(32) for fit in fs.fit(causal, budget=0.9, pooled=True, block_size=8).trials[0])


def test_heads_without_weight_and_functions_as_candidates():
    weights = torch.stack([torch.zeros(30, 30), torch.eye(30)])

    def rows(size):
        return fs.sliding_window(size - 1) & fs.causal()

    family = fs.Family("evens", lambda size: fs.sliding_window(size), [2, 4, 6])
    given = [rows, family, lambda b, h, q_idx, kv_idx: q_idx == kv_idx, (fs.chunked, fs.striped(3))]
    fits = fs.fit(weights, given, 0.6, block_size=5)
    assert [fit.mass for fit in fits] == [1.0, 1.0]
    assert {fit.family for fit in fits.trials[0]} >= {"rows", "evens", "chunked"}
    assert {str(fit.order) for fit in fits.trials[0] if fit.family == "chunked"} == {"striped(3)"}
    assert {fit.mask.label for fit in fits.trials[0] if fit.family == "evens"} <= {
        f"sliding_window(window={size})" for size in (2, 4, 6)
    }


def test_the_table_and_the_picture(tmp_path):
    fits = fs.fit(noise(2, IMAGE.size, IMAGE.size), budget=0.5, canvas=IMAGE, block_size=8)
    lines = repr(fits).splitlines()
    assert lines[0].split()[:4] == ["head", "mass", "blocks", "pairs"] and len(lines) == 3
    assert all(f"{fit.mass:.1%}" in line for fit, line in zip(fits, lines[1:], strict=True))
    assert fits.show(tmp_path / "fit.png").stat().st_size > 10_000
    for points in fits.curve(0).values():
        assert points == sorted(points) and all(density <= 0.5 for density, _ in points)


@pytest.mark.parametrize(
    "code, call",
    [
        ("FS022", lambda: fs.fit(torch.ones(4))),
        ("FS022", lambda: fs.fit(torch.ones(2, 0, 4))),
        ("FS023", lambda: fs.fit([[1.0]])),
        ("FS023", lambda: fs.fit(torch.ones(4, 4, dtype=torch.complex64))),
        ("FS025", lambda: fs.fit(torch.full((4, 4), torch.nan))),
        ("FS025", lambda: fs.fit(-torch.ones(4, 4))),
        ("FS025", lambda: fs.fit(torch.full((4, 4), torch.inf))),
        ("FS025", lambda: fs.fit(torch.full((4, 4), torch.nan), softmax=True)),
        ("FS025", lambda: fs.fit(torch.ones(4, 4), budget=0)),
        ("FS025", lambda: fs.fit(torch.ones(4, 4), budget=1.5)),
        ("FS025", lambda: fs.fit(torch.ones(4, 4), by="tokens")),
        ("FS025", lambda: fs.fit(torch.ones(64, 64), [fs.causal()], 0.1, block_size=8)),
        ("FS025", lambda: fs.fit(torch.ones(4, 4), pooled=True, orders=[fs.striped(2)], block_size=2)),
        ("FS023", lambda: fs.fit(torch.ones(4, 4), fs.causal())),
        ("FS023", lambda: fs.fit(torch.ones(4, 4), [])),
        ("FS023", lambda: fs.fit(torch.ones(4, 4), [3])),
        ("FS021", lambda: fs.fit(torch.ones(4, 4), [fs.sink_window])),
        ("FS030", lambda: fs.fit(torch.ones(4, 4), pooled=True, block_size=8, q_len=40)),
        ("FS030", lambda: fs.fit(torch.ones(4, 4), q_len=5)),
        ("FS030", lambda: fs.fit(torch.ones(4, 4), block_size=0)),
        ("FS032", lambda: fs.fit(torch.ones(4, 4), canvas=IMAGE)),
        ("FS032", lambda: fs.fit(torch.ones(4, 4), canvas=(2, 2))),
        ("FS033", lambda: fs.fit(torch.ones(4, 4), orders=["row_major"])),
    ],
)
def test_mistakes_have_codes(code, call):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
