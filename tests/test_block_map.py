"""Block maps are exact: against plain Python, against torch, and against themselves at other sizes."""

import numpy as np
import pytest
import torch
from flexspec.compiler.blocks import classify, leaves
from flexspec.compiler.blocks import tensor_ranges as tables_module
from flexspec.compiler.blocks.flex_lists import contiguous_lists
from flexspec.compiler.printers.python import function_of
from flexspec.compiler.simplify.rules import simplify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_masks import block_kinds, make_mask, masks, tables, truth
from torch.nn.attention.flex_attention import create_block_mask, create_mask

import flexspec as fs
from flexspec.evaluate import evaluate

LISTS = [f"{full}{side}_{what}" for full in ("", "full_") for side in ("kv", "q") for what in ("num_blocks", "indices")]


def same_as_truth(mask, kept, q_len, kv_len, block, **options):
    made = fs.block_map(mask, q_len, kv_len, block_size=block, **options)
    wanted = block_kinds(kept, *block)
    assert torch.equal(made.kinds().expand_as(wanted), wanted), made
    return made


@settings(max_examples=120, deadline=None)
@given(masks, st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_random_masks_against_plain_python(written, q_len, kv_len, block_q, block_kv, seed):
    batch, heads = 2, 3
    held = tables(max(q_len, kv_len, 4), batch, heads, seed)
    mask = make_mask(written, held)
    kept = truth(written, held, (batch, heads, q_len, kv_len))
    assert torch.equal(mask.dense(q_len, kv_len, batch=batch, heads=heads), kept)
    made = same_as_truth(mask, kept, q_len, kv_len, (block_q, block_kv), batch=batch, heads=heads)
    assert made.kept_pairs * kept.numel() == int(kept.sum()) * made.index.size * q_len * kv_len
    b, h = made.batch - 1, made.heads - 1
    assert made.tokens(0, q_len, 0, kv_len, b=b, h=h).equal(kept[b, h])


lengths = st.integers(50, 700)


@settings(max_examples=60, deadline=None)
@given(masks, lengths, lengths, st.sampled_from([(16, 16), (64, 32), (31, 77)]), st.integers(0, 9))
def test_random_masks_at_length_against_dense(written, q_len, kv_len, block, seed):
    held = tables(max(q_len, kv_len), 2, 2, seed)
    mask = make_mask(written, held)
    same_as_truth(mask, mask.dense(q_len, kv_len, batch=2, heads=2), q_len, kv_len, block, batch=2, heads=2)


@pytest.fixture
def small_steps(monkeypatch):
    """Every stage of the search is reached at small sizes."""
    for module, name, value in ((classify, "_FIRST", 2), (classify, "_FINER", 1), (leaves, "_LEAF", 2)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(leaves, "CHUNK", 64)
    monkeypatch.setattr(leaves, "_FEW", 2)
    monkeypatch.setattr(leaves, "_BLOCKS", 16)
    monkeypatch.setattr(leaves, "_witnesses", lambda: [np.array([[0.0, 1.0], [1.0, 0.0]])])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(masks, st.integers(1, 200), st.integers(1, 200), st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_random_masks_in_small_steps(small_steps, written, q_len, kv_len, block_q, block_kv, seed):
    held = tables(max(q_len, kv_len, 4), 2, 2, seed)
    mask = make_mask(written, held)
    kept = mask.dense(q_len, kv_len, batch=2, heads=2)
    same_as_truth(mask, kept, q_len, kv_len, (block_q, block_kv), batch=2, heads=2)


@settings(max_examples=150, deadline=None)
@given(masks, st.integers(0, 9))
def test_simplify_keeps_the_value(written, seed):
    held = tables(24, 2, 2, seed)
    mask = make_mask(written, held)
    at = {name: torch.arange(size).view(shape) for name, size, shape in POSITIONS}
    values = {**held, **at}
    before = evaluate(mask.expr, values).expand(2, 2, 24, 24)
    assert torch.equal(evaluate(simplify(mask.expr), values).expand(2, 2, 24, 24), before)


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(0, 9), st.booleans())
def test_the_printed_mask_mod_is_the_mask(written, seed, wide):
    held = tables(20, 2, 2, seed)
    mask = make_mask(written, held)
    printed = function_of(mask.expr, held, kind="mask_mod", device=torch.device("cpu"), wide=wide)
    kept = mask.dense(20, 17, batch=2, heads=2)
    assert torch.equal(create_mask(printed, 2, 2, 20, 17, device="cpu").expand_as(kept), kept)


POSITIONS = [("b", 2, (2, 1, 1, 1)), ("h", 2, (1, 2, 1, 1)), ("q", 24, (1, 1, 24, 1)), ("kv", 24, (1, 1, 1, 24))]


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("text", ["(q >= kv) & (q - kv < 37)", "(q - kv) % 5 == 0", "q // 9 == kv // 9"])
def test_classification_does_not_need_its_bounds(text, bounded, monkeypatch):
    """Bounds only save work: with every box undecided the answer is the same."""
    mask = fs.Mask(fs.parse(text), text)
    if not bounded:

        def unknown(self, level, q, kv):
            shape = np.broadcast_shapes(q.shape, kv.shape)
            return np.zeros(shape, bool), np.ones(shape, bool)

        monkeypatch.setattr(classify.Bounds, "over", unknown)
    same_as_truth(mask, mask.dense(150, 131), 150, 131, (16, 24))


def test_a_single_pair_in_a_million_squared_is_found():
    lone = fs.Mask(fs.parse("(q == 777777) & (kv == 123456)"), "lone")
    made = fs.block_map(lone, 1_000_000)
    assert made.counts() == {0: 7813**2 - 1, 1: 1, 2: 0}
    assert made.runs(777777 // 128) == [(964, 965, fs.BlockKind.PARTIAL)]


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_is_not_there_is_no_empty_row(row):
    causal = fs.block_map(fs.causal(), 500)
    with pytest.raises(fs.FlexSpecError, match="FS030.*no row"):
        causal.runs(row)


def test_batch_and_heads_only_where_the_mask_depends_on_them():
    ids = torch.tensor([[0] * 50 + [1] * 50, [0] * 30 + [1] * 70])
    same = fs.from_mask_mod(lambda b, h, q, kv: ids[b, q] == ids[b, kv])
    assert fs.block_map(same, 100, batch=2, heads=8, block_size=16).kinds().shape == (2, 1, 7, 7)
    by_head = fs.mask(lambda h, q, kv: q - kv < 10 * (h % 2 + 1))
    made = fs.block_map(by_head, 100, batch=2, heads=8, block_size=16)
    assert made.kinds().shape == (1, 8, 7, 7)
    assert len(made.maps) == 2  # eight heads of two kinds
    assert fs.block_map(fs.mask(lambda h, q, kv: (h >= 0) & (q > kv)), 100, heads=4).heads == 1


def test_what_an_unsigned_sum_of_runs_holds():
    made = fs.block_map(fs.mask(lambda q, kv: q >= kv), 1_048_576)
    assert made.nbytes < 4 * 2**20
    assert made.counts() == {0: 8192 * 8191 // 2, 1: 8192, 2: 8192 * 8191 // 2}
    assert made.density == pytest.approx(0.5 + 0.5 / 8192)


MASK_MODS = {
    "causal": lambda b, h, q, kv: q >= kv,
    "window": lambda b, h, q, kv: (q >= kv) & (q - kv <= 70),
    "dilated": lambda b, h, q, kv: ((q - kv) % 4 == 0) & ((q - kv).abs() < 90),
    "prefix": lambda b, h, q, kv: (q >= kv) | (kv < 100),
    "by_head": lambda b, h, q, kv: q - kv <= 30 * h,
    "by_batch": lambda b, h, q, kv: torch.where(b == 0, q >= kv, kv >= q),
    "everything": lambda b, h, q, kv: torch.ones_like(q, dtype=torch.bool),
    "nothing": lambda b, h, q, kv: torch.zeros_like(q, dtype=torch.bool),
    "float": lambda b, h, q, kv: q / 3 > kv * 0.7,
}


@pytest.mark.parametrize("name", MASK_MODS)
@pytest.mark.parametrize("sizes", [(256, 256, 128), (300, 500, 128), (500, 300, (64, 128)), (130, 1, 128), (1, 300, 9)])
def test_create_block_mask_is_torchs_field_by_field(name, sizes):
    q_len, kv_len, block = sizes
    fn = MASK_MODS[name]
    ours = fs.create_block_mask(fn, 2, 3, q_len, kv_len, device="cpu", BLOCK_SIZE=block)
    theirs = create_block_mask(fn, 2, 3, q_len, kv_len, device="cpu", BLOCK_SIZE=block)
    for field in LISTS:
        mine, wanted = getattr(ours, field), getattr(theirs, field)
        assert mine.dtype == wanted.dtype and mine.is_contiguous() and torch.equal(mine, wanted), field
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE and ours.seq_lengths == theirs.seq_lengths
    assert ours.mask_mod is fn
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    plain = fs.create_block_mask(fn, 2, 3, q_len, kv_len, device="cpu", separate_full_blocks=False)
    theirs = create_block_mask(fn, 2, 3, q_len, kv_len, device="cpu", separate_full_blocks=False)
    assert plain.full_kv_indices is None and torch.equal(plain.kv_indices, theirs.kv_indices)


def test_create_block_mask_refuses_a_head_that_nobody_counts():
    with pytest.raises(fs.FlexSpecError) as caught:
        fs.create_block_mask(MASK_MODS["by_head"], 1, None, 256, 256, device="cpu")
    assert caught.value.code == "FS031"
    with pytest.raises(fs.FlexSpecError, match="FS031"):
        fs.create_block_mask(MASK_MODS["by_batch"], None, 1, 256, 256, device="cpu")


def test_the_write_order_of_gradients_is_torchs():
    ours, theirs = (
        make(MASK_MODS["window"], 1, 1, 512, 512, device="cpu", compute_dq_write_order=True, dq_kv_order=False)
        for make in (fs.create_block_mask, create_block_mask)
    )
    assert torch.equal(ours.dq_write_order, theirs.dq_write_order)
    assert torch.equal(ours.dq_write_order_full, theirs.dq_write_order_full)
    assert ours.dq_kv_order_spt == theirs.dq_kv_order_spt


def test_contiguous_lists_by_looking():
    for text in (
        "q >= kv",
        "(q >= kv) & (kv < 32)",
        "(q - kv) % 64 < 9",
        "(q // 16 + kv // 16) % 2 == 0",
        "q < 0",
        "abs(q - kv) < 20",
    ):
        for length in (128, 120):
            made = fs.block_map(fs.Mask(fs.parse(text), text), length, block_size=16)
            lists = made.to_flex(compact=False)
            for prefix, side in (("fwd", "kv"), ("bwd", "q")):
                one = True
                for full in ("", "full_"):
                    counts = getattr(lists, f"{full}{side}_num_blocks")[0, 0].tolist()
                    for count, row in zip(counts, getattr(lists, f"{full}{side}_indices")[0, 0].tolist(), strict=True):
                        one &= row[:count] == list(range(row[0], row[0] + count))
                assert (f"{prefix}_BLOCKS_ARE_CONTIGUOUS" in contiguous_lists(made)) == one, (text, length)


def test_documents_like_torchs():
    ids = torch.randint(0, 6, (2, 700)).sort(-1).values.to(torch.int32)
    fn = lambda b, h, q, kv: (ids[b, q] == ids[b, kv]) & (q >= kv)  # noqa: E731
    ours, theirs = (make(fn, 2, None, 700, 700, device="cpu") for make in (fs.create_block_mask, create_block_mask))
    assert all(torch.equal(getattr(ours, field), getattr(theirs, field)) for field in LISTS)


def test_tables_of_a_tensor_are_kept_while_it_holds_the_same(monkeypatch):
    made = []
    along = tables_module.along
    monkeypatch.setattr(tables_module, "along", lambda *args: made.append(args[2]) or along(*args))
    attend = fs.compile(fs.causal_window(window=fs.Param("window")) & fs.document(), backend="reference")
    ids = torch.arange(600)[None] // 90
    attend.block_map(600, window=50, document_id=ids)
    once = len(made)
    attend.block_map(600, window=200, document_id=ids)
    assert once and len(made) == once
    ids[0, 500] = 0
    blocks = attend.block_map(600, window=200, document_id=ids)
    assert len(made) == 2 * once
    kept = (fs.causal_window(200) & fs.document(ids)).dense(600)
    assert torch.equal(blocks.kinds(), block_kinds(kept, 128, 128))


def test_bsr_lists_the_blocks_in_reading_order():
    made = fs.block_map(fs.mask(lambda q, kv: (q >= kv) & (kv != 40)), 64, block_size=16)
    rows = made.to_bsr()
    assert rows.row_ptr.tolist() == [0, 1, 3, 6, 10]
    assert rows.columns.tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert rows.kinds.tolist() == [1, 2, 1, 2, 2, 1, 2, 2, 1, 1]


def test_tile_order_on_a_canvas_with_odd_sides():
    canvas = fs.Canvas(t=3, h=5, w=7)

    @fs.mask(canvas=canvas)
    def near(q, kv):
        return ((q.t - kv.t).abs() <= 1) & ((q.h - kv.h).abs() <= 1) & ((q.w - kv.w).abs() <= 2)

    for order in (fs.tiled(canvas, t=2, h=2, w=4), fs.axes(canvas, "w", "t", "h"), fs.row_major(canvas), fs.striped(4)):
        at = order.permutation(105)
        wanted = near.dense(105)[0, 0][at.clamp(min=0)][:, at.clamp(min=0)] & (at >= 0) & (at >= 0)[:, None]
        made = fs.block_map(near, 105, order=order, block_size=(16, 8))
        assert torch.equal(made.kinds(), block_kinds(wanted[None, None], 16, 8)), order


def test_mask_mod_of_a_map_is_the_mask():
    spec = fs.mask(lambda h, q, kv, *, window: (q - kv < window) & (q >= kv) & (h % 2 == 0))
    made = fs.block_map(spec, 90, heads=4, window=20)
    assert torch.equal(create_mask(made.mask_mod, 1, 4, 90, 90, device="cpu"), spec.dense(90, heads=4, window=20))


PHASE, BY_HEAD = fs.Param("phase", "double"), torch.tensor([0.33, 0.37, -0.02], dtype=torch.float64)
OF_NO_SIDE = {
    "a remainder": fs.mask(lambda: PHASE % 0.1 > 0.05),
    "a wave": fs.mask(lambda: torch.sin(20 * PHASE) > 0.05),
    "a table by head": fs.mask(lambda h: torch.cos(BY_HEAD[h] * 40) > BY_HEAD[h] % 0.1),
    "and positions": fs.mask(lambda h, q, kv: (torch.sin(BY_HEAD[h] * 9) > 0.1) & (q >= kv) | (PHASE % 0.1 > 0.05)),
    "a factor": fs.mask(lambda q, kv: torch.sin(PHASE * 9) * q > (PHASE % 0.1) * kv * 20),
    "nan": fs.mask(lambda h, q: (torch.log(BY_HEAD[h]) < 1) | (q < 40)),
}


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("q_len, kv_len, block", [(1, 1, (1, 1)), (64, 64, (128, 128)), (512, 700, (128, 64))])
@pytest.mark.parametrize("name", OF_NO_SIDE)
def test_conditions_of_neither_side(name, q_len, kv_len, block, bounded, monkeypatch):
    if not bounded:
        unknown = lambda self, level, q, kv: np.broadcast_arrays(False, True, q + kv)[:2]  # noqa: E731
        monkeypatch.setattr(classify.Bounds, "over", unknown)
    mask = OF_NO_SIDE[name]
    for values in [{"phase": 0.33}, {"phase": 0.37}] if "phase" in mask.expr.names else [{}]:
        kept = mask.dense(q_len, kv_len, heads=3, **values)
        same_as_truth(mask, kept, q_len, kv_len, block, heads=3, **values)
        assert fs.is_empty(mask, q_len, kv_len, heads=3, **values).holds == (not kept.any())
        assert fs.every_query_attends(mask, q_len, kv_len, heads=3, **values).holds == bool(kept.any(-1).all())
