"""The mask, the score and the weight of an attention, in which a name means one thing."""

from __future__ import annotations

import pytest
import torch

import flexspec as fs
from flexspec.inputs import make_sizes


def test_parts_are_what_was_given_where_no_name_meets_another() -> None:
    attention = fs.Attention(mask=fs.causal(), scores=[fs.softcap(2.0), fs.alibi()], weight=fs.sigmoid_weight(-1.0))
    parts = attention.parts
    assert parts.mask.expr is fs.causal().expr
    assert parts.score.expr is (fs.softcap(2.0) + fs.alibi()).expr
    assert parts.weight is not None and parts.weight.kind == "sigmoid"
    assert parts.weight.expr is fs.sigmoid_weight(-1.0).expr
    assert parts is attention.parts


def test_without_scores_and_weight() -> None:
    parts = fs.Attention().parts
    assert [str(expr) for expr in parts.exprs] == ["True", "score"] and parts.weight is None


def test_tensors_of_one_name_stay_apart_in_all_three() -> None:
    weight = fs.sigmoid_weight(torch.tensor([1.0, 2.0]))
    [name] = weight.tensors
    score = fs.ScoreMod(fs.parse("t: float[sequence]; score + t[kv]"), "score", {"t": torch.full((3,), 7.0)})
    mask = fs.Mask(fs.parse("t: float[sequence]; t[q] > 0.0"), "mask", {"t": torch.full((3,), 5.0)})
    parts = fs.Attention(mask=mask, scores=[score], weight=weight).parts
    assert str(parts.mask.expr) == "t: float[sequence]; t[q] > 0.0"
    assert str(parts.score.expr) == "t_2: float[sequence]; score + t_2[kv]"
    values = {key: tensor.tolist() for key, tensor in parts.tensors.items()}
    assert values == {"t": [5.0] * 3, "t_2": [7.0] * 3, name: [1.0, 2.0]}
    assert parts.bind(make_sizes(3, heads=2), {}).tensors.keys() == values.keys() == parts.inputs.keys() == parts.names


def test_a_tensor_of_the_mask_gives_way_to_an_input_of_the_weight() -> None:
    """The weight comes last; what it is given at run time keeps its name in every part."""
    bias = fs.Input("t", dims=("heads",), dtype="float")
    mask = fs.Mask(fs.parse("t: float[sequence]; t[q] > 0.0"), "mask", {"t": torch.ones(3)})
    parts = fs.Attention(mask=mask, weight=fs.sigmoid_weight(bias)).parts
    assert str(parts.mask.expr) == "t_2: float[sequence]; t_2[q] > 0.0"
    assert parts.inputs.keys() == {"t", "t_2"} and parts.tensors.keys() == {"t_2"}


def test_a_default_of_one_part_serves_the_others() -> None:
    mask = fs.mask(lambda q, kv: q - kv < fs.Param("window"))

    @fs.score
    def nearer(score, q, kv, *, window=2):
        return score - (q - kv) / window

    parts = fs.Attention(mask=mask, scores=[nearer]).parts
    assert parts.bind(make_sizes(4), {}).numbers == {"window": 2} == parts.defaults
    assert parts.bind(make_sizes(4), {"window": 3}).numbers == {"window": 3}
    assert parts.mask.bind(make_sizes(4), {}).numbers == {"window": 2}


def test_one_name_cannot_be_a_number_and_a_tensor() -> None:
    number = fs.Mask(fs.parse("w: int; q - kv < w"), "number")
    tensor = fs.ScoreMod(fs.parse("w: float[sequence]; score + w[kv]"), "tensor")
    attention = fs.Attention(mask=number, scores=[tensor])
    with pytest.raises(fs.FlexSpecError) as error:
        _ = attention.parts
    assert error.value.code == "FS026" and "`w` is both int and float[sequence]" in str(error.value)


def test_canvases() -> None:
    image = fs.Canvas(h=2, w=3)
    near = fs.mask(canvas=image)(lambda q, kv: q.w == kv.w)
    nearer = fs.score(canvas=image)(lambda score, q, kv: score - abs(q.h - kv.h))
    assert fs.Attention(mask=fs.causal(), scores=[nearer]).parts.mask.canvas == image
    assert fs.Attention(mask=near, scores=[nearer]).parts.canvas == image
    other = fs.score(canvas=fs.Canvas(h=3, w=2))(lambda score, q, kv: score - abs(q.h - kv.h))
    with pytest.raises(fs.FlexSpecError, match="FS032"):
        _ = fs.Attention(mask=near, scores=[other]).parts
