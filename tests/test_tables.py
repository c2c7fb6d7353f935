"""Tables that are read by both sides, such as `table[b, h, q // 64, kv // 64]`: exact on the host, sound on the device,
and as tight as can be. The judge is the mask_mod itself, plain torch on every pair.
"""

import random

import pytest
import torch
from flexspec.compiler.blocks import flex_lists, leaves
from flexspec.compiler.blocks.two_sided import entries_of
from flexspec.compiler.pipeline import map_on_device
from random_masks import block_kinds
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import flexspec as fs
from flexspec.inputs import make_sizes
from flexspec.order import bound_in_memory


def dense(fn, q_len, kv_len, batch, heads):
    """bool [batch, heads, q_len, kv_len]."""
    where = (
        torch.arange(n).view([-1 if axis == own else 1 for axis in range(4)])
        for own, n in enumerate((batch, heads, q_len, kv_len))
    )
    return torch.as_tensor(fn(*where)).expand(batch, heads, q_len, kv_len)


def on_device(fn, q_len, kv_len, block, order=None, **sizes):
    mask = fs.from_mask_mod(fn)
    bound = bound_in_memory(mask.bind(make_sizes(q_len, kv_len, **sizes), {}), order, "cpu")
    return map_on_device(mask, bound, block, order, torch.device("cpu"))


class Drawn:
    """A random mask_mod over random tables, and its sizes."""

    def __init__(self, seed):
        self.seed, self.made = random.Random(seed), torch.Generator().manual_seed(seed)
        self.q_len, self.kv_len = self.seed.randint(1, 90), self.seed.randint(1, 90)
        self.batch, self.heads = self.seed.randint(1, 2), self.seed.randint(1, 3)
        self.block = self.seed.choice([(8, 8), (16, 5), (7, 31), (1, 4), (32, 32)])
        self.longest = max(self.q_len, self.kv_len)
        self.ids = torch.randint(0, 50, (self.batch, self.longest), generator=self.made)
        self.places = torch.randperm(self.longest, generator=self.made)
        self.kinds = torch.randint(0, 2, (self.heads,), generator=self.made)

    def index(self, length):
        """An index of one side, and the entries of its axis."""
        step, count = self.seed.choice([1, 2, 5, 8, 16, 40]), self.seed.randint(1, 9)
        rows = -(-length // step)
        ids, places = self.ids, self.places
        return self.seed.choice(
            [
                (lambda b, h, at: at // step, rows),
                (lambda b, h, at: rows - 1 - at // step, rows),
                (lambda b, h, at: -1 - at // step, rows + 2),
                (lambda b, h, at: at // step - rows, rows),
                (lambda b, h, at: at % count, count),
                (lambda b, h, at: (at * 3 + 1) // step % count, count),
                (lambda b, h, at: places[at] // step, -(-self.longest // step)),
                (lambda b, h, at: ids[b, at] % count, count),
                (lambda b, h, at: (at // step + h) % count, count),
                (lambda b, h, at: at.clamp(2, 11) - 2, 10),
            ]
        )

    def load(self, kind):
        """A table that is read by both sides, and perhaps by batch and head."""
        (q_index, rows), (kv_index, columns) = self.index(self.q_len), self.index(self.kv_len)
        kinds, turned = self.kinds, self.seed.random() < 0.3
        leading, lead = self.seed.choice(
            [
                ((), lambda b, h: ()),
                ((self.batch, self.heads), lambda b, h: (b, h)),
                ((self.heads,), lambda b, h: (h,)),
                ((3, self.heads, self.batch), lambda b, h: (1, h, b)),
                ((2,), lambda b, h: (kinds[h],)),
            ]
        )
        shape = (*leading, *((columns, rows) if turned else (rows, columns)))
        table = torch.rand(shape, generator=self.made)
        if kind == "float":
            table = table.where(table > 0.1, float("nan"))
        elif kind == "bool":
            table = table < self.seed.choice([0.05, 0.5, 0.95])
        else:
            table = (table * 9 - 4).round().to(getattr(torch, kind))

        def read(b, h, q, kv):
            sides = (q_index(b, h, q), kv_index(b, h, kv))
            return table[(*lead(b, h), *(sides[::-1] if turned else sides))]

        return read

    def part(self):
        kind = self.seed.choice(["bool", "bool", "float", "int8", "int32", "int64", "nested", "both sides"])
        read, least = self.load("int64" if kind in ("nested", "both sides") else kind), self.seed.randint(-4, 4)
        if kind == "bool":
            return read
        if kind == "float":
            return lambda *at: read(*at) < 0.6
        row = torch.rand(10, generator=self.made) < 0.5
        if kind == "nested":
            return lambda *at: row[(read(*at) + 4) % 10]
        if kind == "both sides":
            return lambda b, h, q, kv: read(b, h, q, kv) + row[(q - kv) % 9].int() >= least
        return lambda *at: read(*at) >= least

    def mask_mod(self):
        first, second = self.part(), self.part()
        return self.seed.choice(
            [
                first,
                lambda b, h, q, kv: first(b, h, q, kv) & (q >= kv),
                lambda b, h, q, kv: first(b, h, q, kv) | ((q - kv).abs() < 9),
                lambda *at: first(*at) & second(*at),
                lambda *at: first(*at) ^ second(*at),
                lambda b, h, q, kv: torch.where(q > kv + h, first(b, h, q, kv), ~second(b, h, q, kv)),
            ]
        )


@pytest.mark.parametrize("seed", range(150))
def test_random_tables(seed):
    drawn = Drawn(seed)
    fn, sizes = drawn.mask_mod(), {"batch": drawn.batch, "heads": drawn.heads}
    wanted = block_kinds(dense(fn, drawn.q_len, drawn.kv_len, **sizes), *drawn.block)
    made = fs.block_map(fn, drawn.q_len, drawn.kv_len, block_size=drawn.block, **sizes)
    assert torch.equal(made.kinds().expand_as(wanted), wanted)
    found = on_device(fn, drawn.q_len, drawn.kv_len, drawn.block, **sizes)
    kinds = found.kinds().expand_as(wanted)
    assert torch.equal(kinds[kinds != 1], wanted[kinds != 1])
    assert not (found.decided and (kinds == 1).any())


@pytest.mark.parametrize("seed", range(60))
def test_a_single_table_is_bounded_exactly_on_the_device(seed):
    drawn = Drawn(seed)
    fn, sizes = drawn.load("bool"), {"batch": drawn.batch, "heads": drawn.heads}
    wanted = block_kinds(dense(fn, drawn.q_len, drawn.kv_len, **sizes), *drawn.block)
    kinds = on_device(fn, drawn.q_len, drawn.kv_len, drawn.block, **sizes).kinds()
    assert torch.equal(kinds.expand_as(wanted), wanted)


CANVAS = fs.Canvas(h=5, w=7)
ORDERS = {
    "tiled": fs.tiled(CANVAS, h=2, w=4),
    "hilbert": fs.hilbert(CANVAS),
    "zigzag": fs.zigzag(4),
    "by_label": fs.by_label(torch.arange(35) * 3 % 7),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("seed", range(6))
def test_orders(name, seed):
    """In memory, indices are arithmetic of positions, or look their tokens up."""
    drawn, order = Drawn(seed), ORDERS[name]
    drawn.q_len = drawn.kv_len = drawn.longest = 35
    drawn.ids, drawn.places = drawn.ids[:, :1].repeat(1, 35) + torch.arange(35), torch.randperm(35)
    fn, sizes = drawn.mask_mod(), {"batch": drawn.batch, "heads": drawn.heads}
    at = order.permutation(35)
    kept = dense(fn, 35, 35, **sizes)[:, :, at.clamp(min=0)][..., at.clamp(min=0)] & (at >= 0) & (at >= 0)[:, None]
    wanted = block_kinds(kept, *drawn.block)
    made = fs.block_map(fn, 35, order=order, block_size=drawn.block, **sizes)
    assert torch.equal(made.kinds().expand_as(wanted), wanted)
    found = on_device(fn, 35, 35, drawn.block, order, **sizes).kinds().expand_as(wanted)
    assert torch.equal(found[found != 1], wanted[found != 1])


WHOLE = fs.Canvas(h=6, w=8)


@pytest.mark.parametrize(
    "order",
    [fs.tiled(WHOLE, h=2, w=4), fs.hilbert(WHOLE), fs.zigzag(4), fs.by_label(torch.arange(48) * 3 % 7)],
    ids=str,
)
def test_a_gate_of_tokens_is_exact_on_the_device_under_an_order(order):
    """Whether the order is arithmetic or a table, where it pads nothing."""
    gate = torch.rand(2, 48, 6, generator=torch.Generator().manual_seed(1)) < 0.1
    fn = lambda b, h, q, kv: gate[h, q, kv // 8]  # noqa: E731
    at = order.permutation(48)
    wanted = block_kinds(dense(fn, 48, 48, 1, 2)[:, :, at][..., at], 4, 8)
    assert torch.equal(on_device(fn, 48, 48, (4, 8), order, batch=1, heads=2).kinds(), wanted)


CHOSEN = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.4


def choice(b, h, q, kv):
    return CHOSEN[b, h, q // 16, kv // 32]


def test_blocks_of_the_table_are_decided_without_a_pair(monkeypatch):
    """FULL or EMPTY, on the host as on the device; and where tokens of a block choose apart, PARTIAL."""
    monkeypatch.setattr(leaves, "_evaluate", None)
    wanted = 2 * CHOSEN.to(torch.uint8)
    assert torch.equal(fs.block_map(choice, 144, 224, batch=2, heads=3, block_size=(16, 32)).kinds(), wanted)
    found = on_device(choice, 144, 224, (16, 32), batch=2, heads=3)
    assert torch.equal(found.kinds(), wanted) and found.decided
    rank = torch.rand(50, 4, generator=torch.Generator().manual_seed(2)).argsort(-1)
    near = lambda b, h, q, kv: rank[q, kv // 16] < 2  # noqa: E731
    made = fs.block_map(near, 50, 64, block_size=(8, 16))
    assert torch.equal(made.kinds(), block_kinds(dense(near, 50, 64, 1, 1), 8, 16)) and (made.kinds() == 1).any()


def test_values_that_a_block_reads_once_are_decided_on_the_device():
    rank = torch.rand(1, 2, 9, 7, generator=torch.Generator().manual_seed(3)).argsort(-1).to(torch.int8)
    share = torch.rand(1, 2, 9, 7).where(rank > 0, float("nan"))
    for fn in (
        lambda b, h, q, kv: rank[b, h, q // 16, kv // 32] < 3,
        lambda b, h, q, kv: (share[b, h, q // 16, kv // 32] > 0.5) | (rank[b, h, q // 16, kv // 32] + h == 1),
        lambda b, h, q, kv: torch.where(rank[b, h, q // 16, kv // 32] // 2 > 1, h > 0, CHOSEN[0, h, q // 16, kv // 32]),
    ):
        wanted = block_kinds(dense(fn, 144, 224, 1, 2), 16, 32)
        found = on_device(fn, 144, 224, (16, 32), batch=1, heads=2)
        assert found.decided and torch.equal(found.kinds(), wanted)
    found = on_device(
        lambda b, h, q, kv: (rank[b, h, q // 16, kv // 32] < 3) & (q >= kv), 144, 224, (16, 32), batch=1, heads=2
    )
    assert not found.decided and (found.kinds() == 1).any()


def test_nothing_is_read_back():
    """Under fake tensors any value that is asked for raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        table, gate = torch.zeros(2, 3, 9, 7, dtype=torch.bool), torch.zeros(2, 3, 144, 7, dtype=torch.int32)
        ids, kinds = torch.zeros(2, 224, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
        for fn in (
            lambda b, h, q, kv: table[b, h, q // 16, kv // 32],
            lambda b, h, q, kv: (gate[b, h, q, kv // 32] < 3) & (q >= kv),
            lambda b, h, q, kv: table[b, kinds[h], ids[b, q], ids[b, kv] // 32 % 7] ^ table[0, h, q // 16, kv // 32],
        ):
            lists = fs.create_block_mask(fn, 2, 3, 144, 224, device="cpu", BLOCK_SIZE=(16, 32), exact=False)
            assert lists.full_kv_indices.shape == (2, 3, 9, 7)


@pytest.mark.parametrize("lengths", [(144, 224), (140, 224), (144, 210), (130, 200)])
@pytest.mark.parametrize("mask", [choice, lambda b, h, q, kv: choice(b, h, q, kv) & (q >= kv)])
def test_lists_of_all_heads(lengths, mask):
    """As torch sorts them, with a ragged last block among the partial ones; no partial block is looked for in vain."""
    wanted = block_kinds(dense(mask, *lengths, 2, 3), 16, 32)
    for axis, (length, block) in enumerate(zip(lengths, (16, 32), strict=True), start=2):
        if length % block:
            wanted.select(axis, -1).clamp_(max=1)
    ours = fs.create_block_mask(mask, 2, 3, *lengths, device="cpu", BLOCK_SIZE=(16, 32), exact=False)
    names = ("kv", "full_kv", "q", "full_q")
    for name, kind, kinds in zip(names, (1, 2, 1, 2), (wanted, wanted, wanted.mT, wanted.mT), strict=True):
        sorted_by = torch.argsort(kinds == kind, dim=-1, descending=True, stable=True).int()
        assert torch.equal(getattr(ours, f"{name}_indices"), sorted_by)
        assert torch.equal(getattr(ours, f"{name}_num_blocks"), (kinds == kind).sum(-1).int())


def test_lists_in_parts_of_the_cache(monkeypatch):
    chosen = torch.rand(2, 3, 11, 13) < 0.5
    whole = flex_lists._lists(chosen)
    monkeypatch.setattr(leaves, "CHUNK", 20)
    assert all(torch.equal(part, wanted) for part, wanted in zip(flex_lists._lists(chosen), whole, strict=True))


@pytest.mark.parametrize("seed", range(30))
def test_entries_are_those_that_each_cell_reads(seed):
    drawn = random.Random(seed)
    sizes = [drawn.randint(1, 5) for _ in range(drawn.randint(1, 12))]
    cells = [[drawn.randint(0, drawn.choice([0, 1, 20])) for _ in range(size)] for size in sizes]
    first = torch.tensor([0, *sizes[:-1]]).cumsum(0).numpy()
    found = entries_of(torch.tensor(sum(cells, [])).numpy(), first)
    assert [set(found.ids[group].tolist()) for group in found.group] == [set(cell) for cell in cells]
    alone = [set(cell) for cell in cells]
    joined = sum(before == after and len(after) == 1 for before, after in zip(alone, alone[1:], strict=False))
    assert len(found.begin) == len(cells) - joined and found.most == max(map(len, alone))


def test_new_choices_compile_nothing():
    table = fs.Input("chosen", ("batch", "heads", "_", "_"), torch.bool)
    mask = fs.mask(lambda b, h, q, kv: table[b, h, q // 32, kv // 32])
    attend = fs.compile(mask, backend="flex", block_size=32, exact=False)
    q, k, v = torch.randn(3, 2, 3, 128, 16)
    compiled = []
    for share in (0.2, 0.9, 0.5, 1.0):
        chosen = (torch.rand(2, 3, 4, 4) < share) | torch.eye(4, dtype=torch.bool)
        wanted = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=chosen.repeat_interleave(32, -1).repeat_interleave(32, -2)
        )
        assert (attend(q, k, v, chosen=chosen) - wanted).abs().max() < 3e-6
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[1:] == compiled[:1] * 3
    assert attend.facts(128, chosen=chosen)["computed_density"] == 1.0
    some = torch.eye(4, dtype=torch.bool).expand(2, 3, 4, 4)
    assert attend.facts(128, chosen=some)["computed_density"] == 0.25 == attend.block_map(128, chosen=some).density


LINE = torch.arange(8) % 3
WHICH = torch.tensor([[0, 3], [7, 9]])


@pytest.mark.parametrize("exact", [True, False])
def test_a_table_that_is_too_small_is_refused(exact):
    """By its shape alone where indices are arithmetic; by what is looked up where a tensor gives them for one side."""
    at = torch.arange(144)
    for fn in (
        lambda b, h, q, kv: CHOSEN[b, h, q // 16 + 1, kv // 32],
        lambda b, h, q, kv: CHOSEN[b, h, q // 16, kv // 32 - 15],
        lambda b, h, q, kv: CHOSEN[b, h, at[q] // 16 + 1, kv // 32],
        lambda b, h, q, kv: CHOSEN[b, h, q // 16, at[kv % 144] // 16 - 9],
        lambda b, h, q, kv: CHOSEN[:1][LINE[h + 1], h, q // 16, kv // 32],
        lambda b, h, q, kv: LINE[WHICH[q // 80, kv // 120]] == 0,
    ):
        with pytest.raises(fs.FlexSpecError) as caught:
            fs.create_block_mask(fn, 2, 3, 144, 224, device="cpu", exact=exact)
        assert caught.value.code == "FS024" and "test_tables.py" in str(caught.value)
    held = lambda b, h, q, kv: LINE[WHICH[q // 80, kv // 120] % 8] == 0  # noqa: E731
    made = fs.create_block_mask(held, 2, 3, 144, 224, device="cpu", exact=exact)
    assert made.kv_num_blocks.sum() > 0


def test_without_reading_an_index_of_a_score_must_be_held_in():
    bias = torch.linspace(-1, 1, 8)
    q, k, v = torch.randn(3, 1, 2, 128, 16)
    free = fs.score(lambda score, q: score + bias[LINE[q // 16] * 3])
    with pytest.raises(fs.FlexSpecError, match="FS024"):
        fs.compile(fs.Attention(fs.causal(), [free]), backend="flex", exact=False)(q, k, v)
    held = fs.Attention(fs.causal(), [fs.score(lambda score, q: score + bias[(LINE[q // 16] * 3).clamp(0, 7)])])
    attend = fs.compile(held, backend="flex", exact=False)
    assert (attend(q, k, v) - fs.reference_attention(held, q, k, v)).abs().max() < 3e-6
