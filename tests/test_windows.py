"""Windows, sinks, chunks, strides and masks by head: against matrices written by hand and the oracle."""

from __future__ import annotations

import oracle
import pytest
import torch

import flexspec as fs
from flexspec import patterns as p

SIZES = [(1, 1), (7, 7), (13, 13), (5, 11), (11, 5), (16, 16)]


def table(text):
    """Rows of `x` and `.` as a matrix."""
    return [[mark == "x" for mark in line.split()] for line in text.strip().splitlines()]


def rows(mask, q_len, kv_len=None, **values):
    return mask.dense(q_len, kv_len, **values)[0, 0].tolist()


def same_everywhere(mask, keep, sizes=SIZES):
    for q_len, kv_len in sizes:
        assert rows(mask, q_len, kv_len) == oracle.matrix(keep, q_len, kv_len), (mask, q_len, kv_len)


def test_causal():
    assert rows(p.causal(), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        x x x x . .
        x x x x x .
        x x x x x x""")


def test_causal_with_an_offset_is_the_lower_right_one():
    assert rows(p.causal(3), 3, 6) == table("""
        x x x x . .
        x x x x x .
        x x x x x x""")


def test_sliding_window():
    assert rows(p.sliding_window(1), 6) == table("""
        x x . . . .
        x x x . . .
        . x x x . .
        . . x x x .
        . . . x x x
        . . . . x x""")


def test_causal_window_counts_the_query():
    assert rows(p.causal_window(3), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        . x x x . .
        . . x x x .
        . . . x x x""")


def test_sink_window():
    assert rows(p.sink_window(sink=1, window=2), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        x . x x . .
        x . . x x .
        x . . . x x""")


def test_dilated_window():
    assert rows(p.dilated_window(window=1, dilation=2), 6) == table("""
        x . x . . .
        . x . x . .
        x . x . x .
        . x . x . x
        . . x . x .
        . . . x . x""")


def test_global_tokens_on_a_window():
    assert rows(p.sliding_window(0) | p.global_tokens(1), 6) == table("""
        x x x x x x
        x x . . . .
        x . x . . .
        x . . x . .
        x . . . x .
        x . . . . x""")


def test_prefix_lm():
    assert rows(p.prefix_lm(3), 6) == table("""
        x x x . . .
        x x x . . .
        x x x . . .
        x x x x . .
        x x x x x .
        x x x x x x""")


def test_chunked():
    assert rows(p.chunked(4), 6) == table("""
        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
        . . . . x x
        . . . . x x""")


def test_chunk_causal():
    assert rows(p.chunk_causal(2), 6) == table("""
        x x . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        x x x x x x
        x x x x x x""")


def test_log_sparse():
    assert rows(p.log_sparse(), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        . x x x . .
        x . x x x .
        . x . x x x""")


def test_power_window():
    assert rows(p.power_window(window=1, block=2), 6) == table("""
        x . . . . .
        . x . . . .
        x x x . . .
        x x . x . .
        x x x x x .
        x x x x . x""")


def test_strided():
    assert rows(p.strided(3), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        x x x x . .
        . x x x x .
        . . x x x x""")


def test_fixed():
    assert rows(p.fixed(stride=3, summary=1), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        . . x x . .
        . . x x x .
        . . x x x x""")


def test_hidden_decoding():
    assert rows(p.hidden_decoding(3), 6) == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        . . x x . .
        . . x x x .
        . . x x x x""")


ONE_NUMBER = [
    (p.causal, "causal", "offset", [-3, 0, 2, 40]),
    (p.sliding_window, "sliding_window", "window", [0, 1, 4, 40]),
    (p.causal_window, "causal_window", "window", [1, 2, 5, 40]),
    (p.sink, "sink", "n", [0, 1, 5, 40]),
    (p.global_tokens, "global_tokens", "n", [0, 1, 5, 40]),
    (p.prefix_lm, "prefix_lm", "prefix", [0, 1, 6, 40]),
    (p.chunked, "chunked", "chunk", [1, 3, 5, 40]),
    (p.chunk_causal, "chunk_causal", "chunk", [1, 3, 5, 40]),
    (p.strided, "strided", "stride", [1, 2, 5, 40]),
    (p.hidden_decoding, "hidden_decoding", "repeat", [1, 2, 3, 40]),
]
TWO_NUMBERS = [
    (p.sink_window, "sink_window", ("sink", "window"), [(0, 1), (2, 3), (5, 1), (40, 40)]),
    (p.dilated_window, "dilated_window", ("window", "dilation"), [(0, 1), (2, 1), (2, 3), (1, 5), (40, 2)]),
    (p.power_window, "power_window", ("window", "block"), [(1, 1), (3, 2), (2, 3), (40, 1), (1, 40)]),
    (p.fixed, "fixed", ("stride", "summary"), [(1, 0), (4, 0), (4, 1), (5, 3), (3, 3), (3, 7), (40, 1)]),
]
CASES = [(made, name, (key,), [(v,) for v in values]) for made, name, key, values in ONE_NUMBER] + TWO_NUMBERS


@pytest.mark.parametrize("made, name, keys, values", CASES, ids=[case[1] for case in CASES])
def test_against_the_oracle(made, name, keys, values):
    definition = getattr(oracle, name)
    for numbers in values:
        by_name = dict(zip(keys, numbers, strict=True))
        same_everywhere(made(*numbers), lambda q, kv, by_name=by_name: definition(q, kv, **by_name))


@pytest.mark.parametrize("made, name, keys, values", CASES, ids=[case[1] for case in CASES])
def test_parameters_may_be_given_when_it_runs(made, name, keys, values):
    by_name = dict(zip(keys, values[1], strict=True))
    wanted = oracle.matrix(lambda q, kv: getattr(oracle, name)(q, kv, **by_name), 13)
    assert rows(made, 13, **by_name) == wanted


def test_log_sparse_against_the_oracle():
    same_everywhere(p.log_sparse(), oracle.log_sparse, [*SIZES, (70, 70)])


def test_everything_and_nothing():
    same_everywhere(p.everything(), lambda q, kv: True)
    same_everywhere(p.nothing(), lambda q, kv: False)


def test_interior_queries_keep_as_many_keys_as_the_docstrings_say():
    def keys(mask, q=32):
        return sum(rows(mask, 65)[q])

    assert keys(p.sliding_window(5)) == 11
    assert keys(p.causal_window(5)) == 5
    assert keys(p.sink_window(sink=3, window=5)) == 8
    assert keys(p.dilated_window(3, 4)) == 7
    assert keys(p.chunked(5)) == 5
    assert keys(p.log_sparse()) == 2 + 5
    assert keys(p.fixed(stride=5, summary=2)) == 32 % 5 + 1 + 2 * (32 // 5)
    assert keys(p.hidden_decoding(4)) == 32 // 4 + 32 % 4 + 1
    assert sum(rows(p.scaled_span([2.5], [0.0], sink=3), 65)[32]) == 3 + 3


def test_what_other_libraries_call_a_window():
    w, d = 5, 2
    gym = oracle.matrix(lambda q, kv: q >= kv and q - kv <= w, 20)
    assert rows(p.causal_window(w + 1), 20) == gym
    gym_dilated = oracle.matrix(lambda q, kv: abs(q - kv) <= w and (q - kv) % d == 0, 20)
    assert rows(p.dilated_window(w // d, d), 20) == gym_dilated


# masks by head


def test_per_head():
    mask = p.per_head([p.causal(), p.sliding_window(1), p.causal(), p.nothing(), p.causal()])
    wanted = [oracle.causal, lambda q, kv: oracle.sliding_window(q, kv, 1), oracle.causal]
    wanted += [lambda q, kv: False, oracle.causal]
    for q_len, kv_len in SIZES:
        got = mask.dense(q_len, kv_len, heads=5)[0].tolist()
        assert got == [oracle.matrix(keep, q_len, kv_len) for keep in wanted]
    assert repr(mask) == "per_head(table=[0+2+4: causal(), 1: sliding_window(window=1), 3: nothing()])"


def test_per_head_with_many_heads_stays_shallow():
    windows = [1 + (7 * head) % 64 for head in range(64)]
    mask = p.per_head([p.causal_window(window) for window in windows])
    assert mask.expr.depth < 20
    got = mask.dense(9, heads=64)[0].tolist()
    assert got == [oracle.matrix(lambda q, kv, w=w: oracle.causal_window(q, kv, w), 9) for w in windows]
    same = p.per_head([p.causal_window(8)] * 64)
    assert same.expr.depth < 8 and same.dense(9, heads=64)[0, 63].tolist() == rows(p.causal_window(8), 9)


def test_per_head_keeps_tensors_of_the_same_name_apart():
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    mask = p.per_head([p.document(first), p.document(second), lambda b, h, q, kv: q >= kv])
    got = mask.dense(4, heads=3)[0].tolist()
    wanted = [lambda q, kv, ids=ids: oracle.document(q, kv, ids) for ids in (first.tolist(), second.tolist())]
    assert got == [oracle.matrix(keep, 4) for keep in (*wanted, oracle.causal)]


def test_scaled_span():
    alpha, beta, sink = [1, 2.5, 0, 40], [0.0, 0.1, 0.5, 0.0], 2
    mask = p.scaled_span(alpha, beta, sink=sink)
    for q_len, kv_len in SIZES:
        got = mask.dense(q_len, kv_len)[0].tolist()
        for head in range(4):

            def keep(q, kv, n=kv_len, a=alpha[head], b=beta[head]):
                return oracle.scaled_span(q, kv, n, a, b, sink)

            assert got[head] == oracle.matrix(keep, q_len, kv_len)


def test_scaled_span_is_exact_where_float32_is_not():
    """0.1 * 20 is 2.0 in float64; in float32 0.1 is a little more, and the window a key wider."""
    assert sum(rows(p.scaled_span([0.0], [0.1]), 20)[10]) == 2


def test_shifted_groups():
    got = p.shifted_groups(4).dense(6, heads=2)[0].tolist()
    assert got[0] == table("""
        x . . . . .
        x x . . . .
        x x x . . .
        x x x x . .
        . . . . x .
        . . . . x x""")
    assert got[1] == table("""
        x . . . . .
        x x . . . .
        . . x . . .
        . . x x . .
        . . x x x .
        . . x x x x""")


@pytest.mark.parametrize("length, heads, group", [(12, 4, 4), (13, 3, 4), (11, 5, 3), (9, 2, 16), (8, 2, 1)])
def test_shifted_groups_against_the_oracle(length, heads, group):
    got = p.shifted_groups(group).dense(length, heads=heads)[0].tolist()
    assert p.shifted_groups.dense(length, heads=heads, group=group)[0].tolist() == got
    for h in range(heads):

        def keep(q, kv, h=h):
            return oracle.shifted_groups(h, q, kv, heads, length, group)

        assert got[h] == oracle.matrix(keep, length)


def test_labels_show_name_and_parameters():
    assert repr(p.causal_window(1024)) == "causal_window(window=1024)"
    assert repr(p.causal()) == "causal()"
    assert repr(p.sink_window(4, 512)) == "sink_window(sink=4, window=512)"
    assert repr(p.scaled_span([1], [0.5])).startswith("scaled_span(alpha=")
    assert repr(p.everything()) == "everything()"


WRONG = [
    (lambda: p.causal(0.5), "FS025"),
    (lambda: p.sliding_window(-1), "FS025"),
    (lambda: p.causal_window(0), "FS025"),
    (lambda: p.causal_window(True), "FS025"),
    (lambda: p.causal_window("8"), "FS025"),
    (lambda: p.sink(-1), "FS025"),
    (lambda: p.sink_window(sink=-1, window=4), "FS025"),
    (lambda: p.sink_window(sink=1, window=0), "FS025"),
    (lambda: p.dilated_window(2, 0), "FS025"),
    (lambda: p.global_tokens(-1), "FS025"),
    (lambda: p.prefix_lm(-1), "FS025"),
    (lambda: p.chunked(0), "FS025"),
    (lambda: p.chunk_causal(0), "FS025"),
    (lambda: p.power_window(0, 1), "FS025"),
    (lambda: p.strided(0), "FS025"),
    (lambda: p.fixed(4, -1), "FS025"),
    (lambda: p.hidden_decoding(0), "FS025"),
    (lambda: p.shifted_groups(0), "FS025"),
    (lambda: p.causal_window.dense(4, window=0), "FS025"),
    (lambda: p.causal_window.dense(4), "FS020"),
    (lambda: p.causal_window(size=4), "FS021"),
    (lambda: p.per_head([]), "FS023"),
    (lambda: p.per_head(p.causal()), "FS023"),
    (lambda: p.per_head([3]), "FS023"),
    (lambda: p.scaled_span([1, 2], [0.5]), "FS022"),
    (lambda: p.scaled_span([[1.0]], [0.5]), "FS022"),
    (lambda: p.scaled_span(torch.tensor([1]), [0.5]), "FS023"),
    (lambda: p.scaled_span([1], [0.5], sink=-1), "FS025"),
    (lambda: p.scaled_span([1, 2], [0.5, 0.5]).dense(4, heads=3), "FS022"),
]


@pytest.mark.parametrize("call, code", WRONG)
def test_wrong_values(call, code):
    with pytest.raises(fs.FlexSpecError) as caught:
        call()
    assert caught.value.code == code
    assert caught.value.where is None or "test_windows.py" in caught.value.where
