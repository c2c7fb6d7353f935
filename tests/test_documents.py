"""Documents, labels, trees, graphs and segments: against matrices written by hand and the oracle."""

from __future__ import annotations

import random

import oracle
import pytest
import torch

import flexspec as fs
from flexspec import patterns as p
from flexspec.canvas import Canvas


def table(text):
    """Rows of `x` and `.` as a matrix."""
    return [[mark == "x" for mark in line.split()] for line in text.strip().splitlines()]


def rows(mask, q_len, kv_len=None, **values):
    return mask.dense(q_len, kv_len, **values)[0, 0].tolist()


def numbers(seed, batch, length, low, high):
    rng = random.Random(seed)
    return [[rng.randint(low, high) for _ in range(length)] for _ in range(batch)]


def per_sequence(make, keep, data, q_len=None, kv_len=None):
    """The pattern of [batch, sequence], and of each row as [1, sequence] and [sequence]."""
    tensor = torch.tensor(data)
    length = tensor.shape[1]
    q_len, kv_len = q_len or length, kv_len or length
    wanted = [oracle.matrix(lambda q, kv, row=row: keep(q, kv, row), q_len, kv_len) for row in data]
    assert make(tensor).dense(q_len, kv_len)[:, 0].tolist() == wanted
    for row, matrix in zip(tensor, wanted, strict=True):
        one = make(row)
        assert rows(one, q_len, kv_len) == matrix
        assert "b" not in one.expr.names
        same = make(row[None])
        assert "b" not in same.expr.names and same.dense(q_len, kv_len, batch=2)[1, 0].tolist() == matrix


IDS = torch.tensor([0, 0, 1, 1, 1, -1])
DOCUMENTS = table("""
    x x . . . .
    x x . . . .
    . . x x x .
    . . x x x .
    . . x x x .
    . . . . . .""")


def test_document():
    assert rows(p.document(IDS), 6) == DOCUMENTS
    assert rows(p.document(IDS.tolist()), 6) == DOCUMENTS
    assert repr(p.document(IDS)) == "document(ids=<int64[6]>)"


def test_document_reads_a_run_time_input():
    assert repr(p.document()) == "document()"
    assert rows(p.document(), 6, document_id=IDS[None]) == DOCUMENTS
    two = torch.stack([IDS, IDS.flip(0)]).int()
    got = p.document().dense(6, document_id=two)[:, 0].tolist()
    assert got == [DOCUMENTS, [line[::-1] for line in DOCUMENTS[::-1]]]
    one_for_all = p.document().dense(6, batch=3, document_id=IDS[None])
    assert one_for_all[2, 0].tolist() == DOCUMENTS


@pytest.mark.parametrize("length", [1, 7, 13])
def test_document_against_the_oracle(length):
    data = numbers(length, 3, length, -1, 2)
    per_sequence(p.document, oracle.document, data)
    per_sequence(p.document, oracle.document, data, q_len=max(1, length // 2))


def test_two_documents_of_different_tensors_stay_apart():
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    got = rows(p.document(first) & p.document(second), 4)
    assert got == oracle.matrix(
        lambda q, kv: oracle.document(q, kv, first.tolist()) and oracle.document(q, kv, second.tolist()), 4
    )


def test_padding():
    lengths = [3, 0, 7, 9]
    wanted = [oracle.matrix(lambda q, kv, n=n: oracle.padding(q, kv, n), 5, 7) for n in lengths]
    assert p.padding(lengths).dense(5, 7)[:, 0].tolist() == wanted
    assert p.padding(torch.tensor(lengths)).dense(5, 7)[:, 0].tolist() == wanted
    assert p.padding().dense(5, 7, lengths=torch.tensor(lengths))[:, 0].tolist() == wanted


def test_same_label():
    assert rows(p.same_label([3, 5, 3, -1, -1, 0], background=0), 6) == table("""
        x . x . . x
        . x . . . x
        x . x . . x
        . . . x x x
        . . . x x x
        . . . . . x""")


@pytest.mark.parametrize("background", [None, 0, -1, 9])
def test_same_label_against_the_oracle(background):
    def make(labels):
        return p.same_label(labels, background)

    per_sequence(make, lambda q, kv, row: oracle.same_label(q, kv, row, background), numbers(3, 2, 11, -1, 2), q_len=6)


def test_same_label_for_each_head():
    data = torch.tensor([numbers(1, 3, 7, 0, 2), numbers(2, 3, 7, 0, 2)])
    got, rows_of = p.same_label(data).dense(7).tolist(), data.tolist()
    for b in range(2):
        for h in range(3):
            assert got[b][h] == oracle.matrix(lambda q, kv, row=rows_of[b][h]: oracle.same_label(q, kv, row), 7)
    assert p.same_label().dense(7, labels=data[:, 0])[1, 0].tolist() == got[1][0]


def test_token_types():
    kept = p.token_types([1, 2, 0, 1, 2, 1], window=2)
    assert rows(kept, 6) == table("""
        x . . . . .
        x x . . . .
        . x x . . .
        . . x x . .
        . . x x x .
        . . x x x x""")


@pytest.mark.parametrize("window", [1, 2, 40])
@pytest.mark.parametrize("length", [1, 6, 15])
def test_token_types_against_the_oracle(window, length):
    def make(types):
        return p.token_types(types, window)

    data = numbers(length, 4, length, 0, 2)
    per_sequence(make, lambda q, kv, row: oracle.token_types(q, kv, row, window), data)


def by_head(data, keep):
    """For [batch, heads, sequence] numbers, the matrix of each batch entry and head."""
    return [[oracle.matrix(lambda q, kv, row=row: keep(q, kv, row), len(row)) for row in heads] for heads in data]


def test_token_types_by_head_and_at_run_time():
    data = [numbers(seed, 3, 9, 0, 2) for seed in range(2)]
    wanted = by_head(data, lambda q, kv, row: oracle.token_types(q, kv, row, 3))
    types = torch.tensor(data)
    assert p.token_types(types, window=3).dense(9).tolist() == wanted
    values = {"types": types[:, 1], "last_global": p.last_global(types[:, 1])}
    open_types = p.token_types(window=3)
    assert repr(open_types) == "token_types(window=3)"
    assert open_types.dense(9, **values)[:, 0].tolist() == [heads[1] for heads in wanted]
    one = {name: value[:1] for name, value in values.items()}
    assert open_types.dense(9, batch=2, **one)[1, 0].tolist() == wanted[0][1]
    source = fs.Input("kinds", ("batch", "heads", "sequence"))
    given = p.token_types(source, window=3).dense(9, kinds=types, last_global=p.last_global(types))
    assert given.tolist() == wanted
    source = fs.Input("kinds", ("heads", "sequence"))
    given = p.token_types(source, window=3).dense(9, kinds=types[1], last_global=p.last_global(types[1]))
    assert given[0].tolist() == wanted[1]


def test_one_head_serves_all_and_is_not_read_by_head():
    types = torch.tensor(numbers(4, 1, 8, 0, 2))[None]
    mask = p.token_types(types, window=2)
    assert not {"b", "h"} & mask.expr.names
    assert mask.dense(8, heads=3)[0, 2].tolist() == oracle.matrix(
        lambda q, kv: oracle.token_types(q, kv, types[0, 0].tolist(), 2), 8
    )


def test_last_global():
    assert p.last_global(torch.tensor([[1, 0, 2, 1], [0, 1, 0, 2]])).tolist() == [[-1, 1, 1, 1], [0, 0, 2, 2]]


def test_bridge_by_head_and_at_run_time():
    data = [[[value == 0 for value in row] for row in numbers(seed, 3, 10, 0, 3)] for seed in range(2)]
    wanted = by_head(data, lambda q, kv, row: oracle.bridge(q, kv, 4, row, 2))
    memory = torch.tensor(data)
    assert p.bridge(4, memory, 2).dense(10).tolist() == wanted
    assert repr(p.bridge(4, window=2)) == "bridge(chunk=4, window=2)"
    given = p.bridge(4, window=2).dense(10, memory_ids=memory[:, 2])
    assert given[:, 0].tolist() == [heads[2] for heads in wanted]
    source = fs.Input("mine", ("batch", "heads", "sequence"), bool)
    assert p.bridge(4, source, 2).dense(10, mine=memory).tolist() == wanted


@pytest.mark.parametrize("backend", ["reference", "flex", "triton"])
def test_one_length_for_a_batch_in_a_call(backend):
    q, k, v = (torch.randn(3, 2, 40, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    keep = torch.arange(40) < 30
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep[None]) * keep[:, None]
    out = fs.compile(p.padding(), backend=backend, block_size=16)(q, k, v, lengths=torch.tensor([30]))
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)


def test_an_input_stands_for_a_tensor():
    ids = fs.Input("ids", ("sequence",))
    assert rows(p.document(ids), 6, ids=IDS) == DOCUMENTS
    assert repr(p.document(ids)) == "document(ids=<ids>)"
    labels = fs.Input("ids", ("heads", "sequence"))
    both = torch.stack([IDS, IDS.flip(0)])
    wanted = [oracle.matrix(lambda q, kv, row=row: oracle.same_label(q, kv, row), 6) for row in both.tolist()]
    assert p.same_label(labels).dense(6, ids=both)[0].tolist() == wanted
    assert rows(p.shared_prefix(2), 6, branch_ids=IDS[None]) == rows(p.shared_prefix(2, IDS), 6)


@pytest.mark.parametrize("backend", ["reference", "flex", "triton"])
def test_types_at_run_time_in_a_call(backend):
    types = torch.tensor(numbers(7, 2, 40, 0, 2))
    q, k, v = (torch.randn(2, 2, 40, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
    keep = p.token_types(types, window=5).dense(40)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    attend = fs.compile(p.token_types(window=5), backend=backend, block_size=16)
    out = attend(q, k, v, types=types, last_global=p.last_global(types))
    torch.testing.assert_close(out, wanted, atol=2e-5, rtol=2e-5)


def test_numbers_may_be_run_time_parameters():
    types = numbers(0, 1, 9, 0, 2)[0]
    mask = p.token_types(types, window=fs.Param("reach")) & p.shared_prefix(fs.Param("n"), [1] * 5 + [2] * 4)

    def keep(q, kv):
        return oracle.token_types(q, kv, types, 2) and oracle.shared_prefix(q, kv, 3, [1] * 5 + [2] * 4)

    assert rows(mask, 9, reach=2, n=3) == oracle.matrix(keep, 9)


def test_shared_prefix():
    assert rows(p.shared_prefix(2, [9, 9, 0, 0, 1, 1]), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        x x x x . .
        x x . . x .
        x x . . x x""")


@pytest.mark.parametrize("prefix", [0, 3, 40])
def test_shared_prefix_against_the_oracle(prefix):
    def make(ids):
        return p.shared_prefix(prefix, ids)

    data = numbers(prefix, 3, 11, -1, 2)
    per_sequence(make, lambda q, kv, row: oracle.shared_prefix(q, kv, prefix, row), data)


def test_tree():
    assert rows(p.tree([-1, 0, 0, 1, 1, 2]), 6) == table("""
        x . . . . .
        x x . . . .
        x . x . . .
        x x . x . .
        x x . . x .
        x . x . . x""")


def random_forest(seed, length):
    rng = random.Random(seed)
    name = list(range(length))
    rng.shuffle(name)
    parents = [-1] * length
    for i in range(length):
        parents[name[i]] = name[rng.randrange(i)] if i and rng.random() < 0.85 else -1
    return parents


def test_tree_against_the_oracle():
    for length in (1, 8, 17):
        per_sequence(p.tree, oracle.tree, [random_forest(seed, length) for seed in range(4)])


def test_tree_of_a_chain_is_causal_however_long():
    chain = torch.arange(-1, 4999)
    mask = p.tree(chain)
    at = torch.tensor([0, 1, 17, 4998, 4999])
    got = mask(torch.tensor(0), torch.tensor(0), at[:, None], at[None, :])
    assert torch.equal(got, at[:, None] >= at[None, :])


def test_bridge():
    memory = torch.tensor([True, False, False, False, False, False])
    assert rows(p.bridge(3, memory, window=1), 6) == table("""
        x . . . . .
        x x . . . .
        x . x . . .
        x . x x . .
        x . x . x .
        x . x . . x""")


@pytest.mark.parametrize("chunk, window", [(1, 1), (4, 3), (5, 1), (40, 2)])
def test_bridge_against_the_oracle(chunk, window):
    def make(memory):
        return p.bridge(chunk, memory, window)

    data = [[value == 0 for value in row] for row in numbers(chunk, 3, 13, 0, 4)]
    per_sequence(make, lambda q, kv, row: oracle.bridge(q, kv, chunk, row, window), data)


def test_block_diffusion():
    assert rows(p.block_diffusion(block=1, n=3), 6) == table("""
        x . . . . .
        . x . x . .
        . . x x x .
        . . . x . .
        . . . x x .
        . . . x x x""")


@pytest.mark.parametrize("block, n", [(1, 5), (3, 7), (4, 8), (40, 6)])
def test_block_diffusion_against_the_oracle(block, n):
    def keep(q, kv):
        return oracle.block_diffusion(q, kv, block, n)

    assert rows(p.block_diffusion(block, n), 2 * n) == oracle.matrix(keep, 2 * n)
    assert rows(p.block_diffusion, 2 * n, block=block, n=n) == oracle.matrix(keep, 2 * n)


# graphs


def random_graph(seed, rows_, columns):
    rng = random.Random(seed)
    lists = [rng.sample(range(columns), rng.randint(0, columns)) for _ in range(rows_)]
    pointers = [sum(len(row) for row in lists[:i]) for i in range(rows_ + 1)]
    return pointers, [key for row in lists for key in row]


def test_adjacency():
    assert rows(p.adjacency(([0, 2, 2, 3], [0, 2, 1])), 3) == table("""
        x . x
        . . .
        . x .""")
    assert rows(p.adjacency(([0, 0, 0], [])), 2) == table("""
        . .
        . .""")


@pytest.mark.parametrize("length", [1, 9, 32, 33, 70])
def test_adjacency_against_the_oracle(length):
    pointers, keys = random_graph(length, length, length)
    wanted = oracle.matrix(lambda q, kv: oracle.adjacency(q, kv, pointers, keys), length)
    assert rows(p.adjacency((pointers, keys)), length) == wanted
    twice = [2 * pointer for pointer in pointers], [key for key in keys for _ in range(2)]
    assert rows(p.adjacency(tuple(map(torch.tensor, twice))), length) == wanted


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_adjacency_of_a_sparse_tensor():
    pointers, keys = random_graph(5, 6, 40)
    dense = torch.tensor(oracle.matrix(lambda q, kv: oracle.adjacency(q, kv, pointers, keys), 6, 40))
    assert p.adjacency(dense.float().to_sparse_csr()).dense(6, 40)[0, 0].equal(dense)


# segments


def test_segments():
    kept = p.segments(
        {"text": 2, "image": 4},
        {
            ("text", "text"): p.causal(),
            ("image", "text"): True,
            ("image", "image"): p.axial(Canvas(h=2, w=2), "w"),
        },
    )
    assert rows(kept, 6) == table("""
        x . . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        x x . . x x
        x x . . x x""")
    assert repr(kept).startswith("segments(lengths={'text': 2, 'image': 4}, table={('text', 'text'): causal()")


def test_segments_see_their_own_positions_and_lengths():
    lengths = {"a": 3, "b": 5, "c": 4}
    ids = [0, 1, 1, 0]
    made = {
        ("a", "b"): p.causal_window(2),
        ("b", "a"): fs.mask(last),
        ("b", "b"): p.sliding_window(1),
        ("c", "c"): p.document(ids),
        ("c", "a"): lambda b, h, q, kv: q + kv < 3,
        ("a", "c"): None,
        ("a", "a"): False,
        ("b", "c"): p.everything(),
    }
    plain = {
        ("a", "b"): lambda q, kv: oracle.causal_window(q, kv, 2),
        ("b", "a"): lambda q, kv: kv == 3 - 1 - q % 3 and q < 4,
        ("b", "b"): lambda q, kv: oracle.sliding_window(q, kv, 1),
        ("c", "c"): lambda q, kv: oracle.document(q, kv, ids),
        ("c", "a"): lambda q, kv: q + kv < 3,
        ("b", "c"): lambda q, kv: True,
    }
    wanted = oracle.matrix(lambda q, kv: oracle.segments(q, kv, lengths, plain), 12, 14)
    assert rows(p.segments(lengths, made), 12, 14) == wanted


def last(q, kv, q_len, kv_len):
    return (kv == kv_len - 1 - q % kv_len) & (q < q_len - 1)


def test_segments_with_tensors_of_a_batch_and_of_the_same_name():
    lengths = {"a": 3, "b": 4}
    first, second = numbers(1, 2, 3, -1, 1), numbers(2, 2, 4, -1, 1)
    kept = p.segments(
        lengths,
        {("a", "a"): p.document(torch.tensor(first)), ("b", "b"): p.document(torch.tensor(second))},
    )
    got = kept.dense(7)[:, 0].tolist()
    for b in range(2):
        plain = {
            ("a", "a"): lambda q, kv, ids=first[b]: oracle.document(q, kv, ids),
            ("b", "b"): lambda q, kv, ids=second[b]: oracle.document(q, kv, ids),
        }
        wanted = oracle.matrix(lambda q, kv, plain=plain: oracle.segments(q, kv, lengths, plain), 7)
        assert got[b] == wanted


def test_segments_with_an_open_input_read_the_tensor_of_their_segment():
    kept = p.segments({"a": 2, "b": 3}, {("b", "b"): p.document(), ("a", "a"): True})
    got = rows(kept, 5, document_id=torch.tensor([[7, 8, 7]]))
    plain = {("b", "b"): lambda q, kv: oracle.document(q, kv, [7, 8, 7]), ("a", "a"): lambda q, kv: True}
    assert got == oracle.matrix(lambda q, kv: oracle.segments(q, kv, {"a": 2, "b": 3}, plain), 5)
    with pytest.raises(fs.FlexSpecError) as caught:
        p.segments({"a": 2, "b": 3}, {("b", "b"): p.document(), ("a", "a"): p.document()})
    assert caught.value.code == "FS026"


def test_segments_with_parameters_and_composition():
    kept = p.segments({"a": 3, "b": 4}, {("b", "b"): p.causal_window}) & p.document(torch.tensor([0] * 5 + [1] * 2))
    plain = {("b", "b"): lambda q, kv: oracle.causal_window(q, kv, 2)}
    wanted = oracle.matrix(lambda q, kv: oracle.segments(q, kv, {"a": 3, "b": 4}, plain) and (q < 5) == (kv < 5), 7)
    assert rows(kept, 7, window=2) == wanted


WRONG = [
    (lambda: p.document(torch.tensor([0.5])), "FS023"),
    (lambda: p.document("ids"), "FS023"),
    (lambda: p.document(torch.zeros(2, 2, 2).long()), "FS022"),
    (lambda: p.document(torch.zeros(0).long()), "FS022"),
    (lambda: p.document([0, 1]).dense(3), "FS022"),
    (lambda: p.document().dense(3), "FS020"),
    (lambda: p.padding([-1]), "FS025"),
    (lambda: p.padding([[1]]), "FS022"),
    (lambda: p.same_label([0], background=0.5), "FS025"),
    (lambda: p.token_types([0, 3], window=1), "FS025"),
    (lambda: p.token_types([0, -1], window=1), "FS025"),
    (lambda: p.token_types([0, 1], window=0), "FS025"),
    (lambda: p.token_types([0, 1]), "FS025"),
    (lambda: p.token_types(window=2).dense(3, types=torch.zeros(1, 3).long()), "FS020"),
    (lambda: p.token_types(fs.Input("last_global", ("sequence",)), window=2), "FS026"),
    (lambda: p.token_types(fs.Input("types", ("sequence", "batch")), window=2), "FS022"),
    (lambda: p.token_types(fs.Input("types", ("sequence",), float), window=2), "FS023"),
    (lambda: p.token_types(torch.zeros(1, 1, 1, 3).long(), window=2), "FS022"),
    (lambda: p.document(fs.Input("ids", ("batch", "heads", "sequence"))), "FS022"),
    (lambda: p.document(fs.Input("ids", ("batch", "sequence"))[0]), "FS022"),
    (lambda: p.bridge(2), "FS025"),
    (lambda: p.bridge(2, fs.Input("memory", ("sequence",)), 1), "FS023"),
    (lambda: p.last_global([0.5]), "FS023"),
    (lambda: p.shared_prefix(-1, [0]), "FS025"),
    (lambda: p.tree([0]), "FS025"),
    (lambda: p.tree([-1, 2, 1]), "FS025"),
    (lambda: p.tree([-1, 5]), "FS025"),
    (lambda: p.tree([-2, 0]), "FS025"),
    (lambda: p.bridge(0, [True], 1), "FS025"),
    (lambda: p.bridge(1, [True], 0), "FS025"),
    (lambda: p.bridge(1, [1], 1), "FS023"),
    (lambda: p.block_diffusion(0, 4), "FS025"),
    (lambda: p.block_diffusion(1, 0), "FS025"),
    (lambda: p.adjacency([1, 2, 3]), "FS023"),
    (lambda: p.adjacency(torch.zeros(2, 2)), "FS023"),
    (lambda: p.adjacency(([0], [])), "FS022"),
    (lambda: p.adjacency(([0, 2, 1], [0])), "FS025"),
    (lambda: p.adjacency(([0, 1], [1])), "FS025"),
    (lambda: p.adjacency(([0, 1], [-1])), "FS025"),
    (lambda: p.adjacency(([0, 1, 1], [1])).dense(3), "FS022"),
    (lambda: p.segments({}, {}), "FS023"),
    (lambda: p.segments({"a": 0}, {}), "FS025"),
    (lambda: p.segments({"a b": 1}, {}), "FS023"),
    (lambda: p.segments({"a": 1}, {("a", "b"): True}), "FS021"),
    (lambda: p.segments({"a": 1}, {"a": True}), "FS021"),
    (lambda: p.segments({"a": 1}, {("a", "a"): 3}), "FS023"),
    (lambda: p.segments({"a": 1}, [True]), "FS023"),
    (lambda: p.segments({"a": 3}, {("a", "a"): p.axial(Canvas(h=2, w=2), "h")}), "FS032"),
    (lambda: p.segments({"a": 3}, {("a", "a"): p.document([0, 1])}), "FS022"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_documents.py" in caught.value.where
