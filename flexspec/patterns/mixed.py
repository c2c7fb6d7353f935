"""Text beside a canvas, and masks over places in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..canvas import Canvas
from ..errors import FlexSpecError
from ..expr import Expr, Load, const, input_, load, substitute, transform, var
from ..inputs import Input
from ..mask import Mask, from_mask_mod, mask
from ..order import TOKEN_AT, BySide, Order, in_memory
from ..user_line import user_caret
from .about import pattern
from .checks import Text, as_tensor, whole
from .documents import segments

__all__: list[str] = ["reordered", "with_text"]


@pattern(
    "",
    "a mask over the places in memory of an order",
    picture="fs.reordered(fs.temporal_head(fs.Canvas(t=8, h=8, w=8), width=32), "
    'fs.axes(fs.Canvas(t=8, h=8, w=8), "h", "w", "t"))',
)
def reordered(pattern: Mask, order: Order, length: int | None = None) -> Mask:
    """The mask of the places in memory at which `order` puts the tokens: place `m` keeps what its token keeps.

    It is what `order=` does inside `block_map` and `compile`, as a mask: to prove things about an order, or to have one
    for a part of a sequence (`segments`). The mask has `order.padded(length)` positions, of which the padding keeps
    nothing and is not kept. Tensors in the mask stay in the order of the tokens.

    pattern: a mask, or a mask_mod.
    order: an order of as many tokens.
    length: tokens, where neither the mask nor the order has a canvas.

    Raises FS023 (no mask, no order), FS025 (length is no count), FS030 (no length), FS032 (a length that is not the
    canvas'), FS033 (an order of another number of tokens).

    >>> from flexspec import axes, sliding_window, temporal_head
    >>> video = Canvas(t=5, h=8, w=8)
    >>> band = reordered(temporal_head(video, width=60), axes(video, "h", "w", "t"))
    >>> bool(band.equals(sliding_window(59), video.size))
    True
    """
    pattern = from_mask_mod(pattern)
    if pattern.canvases is not None:
        message = f"{pattern.label} has a canvas for each side, and an order moves both alike"
        raise FlexSpecError("FS032", message, fix="give block_map or compile the order", where=user_caret())
    if not isinstance(order, Order) or isinstance(order, BySide):
        message = f"the order is a {type(order).__name__}"
        raise FlexSpecError("FS023", message, fix="give fs.tiled(...) or another order", where=user_caret())
    canvas = pattern.canvas or order.canvas
    if canvas is None and length is None:
        fix = "give length=<tokens>"
        raise FlexSpecError("FS030", "nothing says how many tokens there are", fix=fix, where=user_caret())
    tokens = whole("length", length) if canvas is None else canvas.size
    if length not in (None, tokens):
        message = f"{canvas} has {tokens:,} tokens, length is {length!r}"
        raise FlexSpecError("FS032", message, where=user_caret())
    order.check(tokens)
    expr = in_memory(transform(pattern.expr, _of_tokens), order, pattern.canvas, tokens, tokens)
    expr = substitute(expr, {"q_len": const(tokens), "kv_len": const(tokens)})
    in_places = _holding(replace(pattern, expr=expr, canvas=None, predicate=None), order)
    return in_places.named("reordered", pattern=Text(pattern.label), order=Text(order))


def _of_tokens(node: Expr) -> Expr:
    """A load whose dims are not compared with the call, which has places for padding too."""
    if not isinstance(node, Load):
        return node
    names = tuple("tokens" if dim in ("sequence", "q_len", "kv_len") else dim for dim in node.input.dims)
    return load(input_(node.input.name, names, node.input.type), node.index)


def _holding(in_places: Mask, order: Order) -> Mask:
    """A mask over memory with the table of its order, if it loads from one; as a held tensor it may have any name."""
    if TOKEN_AT not in in_places.expr.names:
        return in_places

    def own(node: Expr) -> Expr:
        if isinstance(node, Load) and node.input.name == TOKEN_AT:
            return load(input_("order", node.input.dims, node.input.type), node.index)
        return node

    table = order.tensors()[TOKEN_AT]
    return replace(in_places, expr=transform(in_places.expr, own), tensors={**in_places.tensors, "order": table})


@pattern(
    "with_text(first_frame(canvas(t=30, h=48, w=80)), text=256)",
    "a mask on a canvas, and text that sees all",
    picture="fs.with_text(fs.axial(fs.Canvas(t=7, h=8, w=8), 't'), text=64, lengths=[40])",
)
def with_text(pattern: Mask, text: int, lengths: Any = None, first: bool = False, order: Order | None = None) -> Mask:
    """A mask on a canvas, and text beside it: the canvas' tokens see the text and what `pattern` keeps, text sees all.

    A query of the canvas keeps as many keys as in `pattern`, and `lengths[b]` more.

    pattern: a mask on a canvas.
    text: places for text, after the canvas' tokens, at least 1.
    lengths: int [batch], how many of them hold text; the rest is padding, which neither sees nor is seen. Default: the
        run-time input `text_lengths` [batch].
    first: the text stands before the canvas' tokens.
    order: how the canvas' tokens lie in memory; the sequence of the call is then
        `torch.cat([order.apply(video), text], -2)`, and the mask is over its places.

    Source: video diffusion models with text in the sequence (HunyuanVideo, CogVideoX), whose sparse attention keeps
    all pairs with text. Raises FS022 (the shape of lengths), FS023 (no mask, no order, no integers), FS025 (text,
    lengths, first), FS032 (a mask on no canvas), FS033 (an order of another number of tokens).

    >>> from flexspec import axial
    >>> with_text(axial(Canvas(h=2, w=2), "w"), text=2, lengths=[1]).dense(6).int()[0, 0].tolist()[1:]
    [[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    """
    pattern = from_mask_mod(pattern)
    if pattern.canvas is None:
        fix = "for other masks see fs.segments"
        raise FlexSpecError("FS032", f"{pattern.label} is on no canvas", fix=fix, where=user_caret())
    whole("text", text)
    if not isinstance(first, bool):
        raise FlexSpecError("FS025", f"first is {first!r}", fix="give True or False", where=user_caret())
    canvas: Canvas = pattern.canvas
    video = pattern if order is None else reordered(pattern, order)
    sizes = {"video": canvas.size if order is None else order.padded(canvas.size), "text": text}
    real_q, real_kv = (_in_canvas(side, order, canvas.size) for side in ("q", "kv"))
    limit = Input("text_lengths", ("batch",))
    held = {} if lengths is None else {"text_lengths": _checked(lengths, text)}
    text_q, text_kv = mask(lambda b, q: q < limit[b])(**held), mask(lambda b, kv: kv < limit[b])(**held)
    table = {
        ("video", "video"): video,
        ("video", "text"): real_q & text_kv,
        ("text", "video"): text_q & real_kv,
        ("text", "text"): text_q & text_kv,
    }
    whole_sequence = segments(dict(reversed(sizes.items())) if first else sizes, table)
    shown = {"lengths": held.get("text_lengths"), "first": first or None, "order": order and Text(order)}
    shown = {name: value for name, value in shown.items() if value is not None}
    return whole_sequence.named("with_text", pattern=Text(pattern.label), text=text, **shown)


def _in_canvas(side: str, order: Order | None, size: int) -> Mask:
    """Where a place of the canvas' part holds a token."""
    valid = None if order is None else order.place(var(side), size).valid
    return Mask.constant(True) if order is None or valid is None else _holding(Mask(valid, "padding"), order)


def _checked(lengths: Any, text: int) -> Any:
    tensor = as_tensor("lengths", lengths, [1])
    if int(tensor.min()) < 0 or int(tensor.max()) > text:
        message = f"lengths go from {int(tensor.min())} to {int(tensor.max())}"
        raise FlexSpecError("FS025", message, fix=f"give 0 to {text} tokens of text", where=user_caret())
    return tensor
