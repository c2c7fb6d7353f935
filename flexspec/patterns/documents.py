"""Documents, labels and segments: a sequence that holds several things.

A tensor with a value for each token is [sequence] or [batch, sequence]; a batch of one serves all. `sequence`
is the longer of the two lengths. Its shape is checked again when the mask runs. In the place of a tensor stands an
`fs.Input` of these dims, or nothing where the pattern has an input of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from ..errors import FlexSpecError, choices
from ..expr import Expr, Load, apply, const, input_, inputs_of, load, substitute, transform, var
from ..inputs import Input
from ..mask import Mask, from_mask_mod, mask
from ..user_line import user_caret
from .about import pattern
from .checks import as_tensor, per_token, whole
from .heads import united

__all__: list[str] = ["document", "padding", "same_label", "shared_prefix", "segments"]


@pattern(
    "document()",
    "tokens of the same document",
    picture="fs.document(torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor([100, 250, 162])))",
)
def document(ids: Any = None) -> Mask:
    """Tokens of the same document see each other: a query keeps as many keys as its document has tokens.

    ids: int [sequence] or [batch, sequence]; a negative id is padding, which neither sees nor is seen. Default: the
        run-time input `document_id` [batch, sequence].

    Source: packed training; PyTorch's document mask has no padding id. Raises FS022 (shape), FS023 (not integers).

    >>> document([0, 0, 1, -1]).dense(4).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    document_id = per_token("ids", ids, "document_id")

    def same(b: Any, q: Any, kv: Any) -> Any:
        own = document_id.read(b, None, q)
        return (own == document_id.read(b, None, kv)) & (own >= 0)

    return mask(same)(**document_id.held).named("document", **({} if ids is None else {"ids": document_id.shown}))


@pattern("padding()", "only real tokens", picture="fs.padding([300])")
def padding(lengths: Any = None) -> Mask:
    """Only the first `lengths[b]` tokens of each sequence see, and are seen: a query keeps `lengths[b]` keys.

    A padding query keeps nothing; libraries that mask only the keys give it an average of values instead.

    lengths: int [batch], a tensor or a list. Default: the run-time input `lengths` [batch].

    Raises FS022 (shape), FS023 (not integers), FS025 (a negative length).

    >>> padding([2]).dense(3).int()[0, 0].tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    tensor = None if lengths is None else as_tensor("lengths", lengths, [1])
    if tensor is not None and int(tensor.min()) < 0:
        raise FlexSpecError("FS025", "lengths has a negative entry", fix="give token counts", where=user_caret())
    limit = Input("lengths", ("batch",))
    real = mask(lambda b, q, kv: (q < limit[b]) & (kv < limit[b]))
    if tensor is None:
        return real.named("padding")
    return real(lengths=tensor).named("padding", lengths=tensor)


@pattern("same_label()", "tokens with the same label", picture="fs.same_label(torch.arange(512) % 64 // 16)")
def same_label(labels: Any = None, background: int | None = None) -> Mask:
    """Tokens with the same label see each other: a query keeps as many keys as its label has tokens.

    labels: int [sequence], [batch, sequence] or [batch, heads, sequence]. Any label is legal, negative ones too
        (`document` reads those as padding). Default: the run-time input `labels` [batch, sequence].
    background: a label whose tokens all queries see; its own queries see only each other.

    Source: FLATTEN and Trajectory Attention (flow paths), Routing Transformer (clusters). Raises FS022 (shape), FS023
    (not integers), FS025 (background).

    >>> same_label([5, 7, 5, 0], background=0).dense(4).int()[0, 0].tolist()
    [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 1]]
    """
    label = per_token("labels", labels, "labels", heads=True)
    if background is not None:
        whole("background", background, None)

    def same(b: Any, h: Any, q: Any, kv: Any) -> Any:
        key = label.read(b, h, kv)
        kept = label.read(b, h, q) == key
        return kept if background is None else kept | (key == background)

    shown = {"labels": label.shown, "background": background}
    shown = {name: value for name, value in shown.items() if value is not None}
    return mask(same)(**label.held).named("same_label", **shown)


@pattern("shared_prefix(256)", "branches that share a prefix", picture="fs.shared_prefix(128, torch.arange(512) // 96)")
def shared_prefix(prefix: int, branch_ids: Any = None) -> Mask:
    """Causal inside the prefix and inside each branch; every branch sees the prefix, and no other branch.

    A query keeps the prefix and the tokens of its branch so far.

    prefix: tokens of the prefix, which stands first, at least 0.
    branch_ids: int [sequence] or [batch, sequence] over the whole sequence; its first `prefix` entries are not read,
        and a negative id after them is padding. Default: the run-time input `branch_ids` [batch, sequence].

    Source: tree decoding, shared-prefix RL. Raises FS022 (shape), FS023 (not integers), FS025 (prefix).

    >>> shared_prefix(1, [0, 1, 1, 2]).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    """
    whole("prefix", prefix, 0)
    branch_id = per_token("branch_ids", branch_ids, "branch_ids")

    def branch(b: Any, q: Any, kv: Any) -> Any:
        own = branch_id.read(b, None, q)
        real = (q < prefix) | (own >= 0)
        return (q >= kv) & real & ((kv < prefix) | (own == branch_id.read(b, None, kv)))

    shown = {} if branch_ids is None else {"branch_ids": branch_id.shown}
    return mask(branch)(**branch_id.held).named("shared_prefix", prefix=prefix, **shown)


@pattern(
    "",
    "a mask for each two named segments",
    picture='fs.segments({"text": 128, "image": 384}, {("text", "text"): fs.causal(), '
    '("image", "text"): True, ("image", "image"): fs.sliding_window(40)})',
)
def segments(lengths: Mapping[str, int], table: Mapping[tuple[str, str], Any]) -> Mask:
    """A sequence of named segments, and between each two of them a mask of its own.

    A mask inside sees positions from 0 in its two segments and their lengths as q_len and kv_len: a canvas in it has as
    many tokens as the segment, and a tensor in it as many entries (an open input's dim `sequence` is called
    `<segment>_tokens`). For tensors over the whole sequence, combine outside: `segments(...) & document()`.
    Tokens after the last segment see nothing.

    lengths: tokens of each segment, by name, in the order in which they stand.
    table: for (query segment, key segment) a mask, True (everything) or False (nothing, as for pairs that are not
        named).

    Source: multimodal language models, video with text. Raises FS021 (a segment that has no length), FS022 (a tensor of
    another length), FS023 (no mapping, or no mask in it), FS025 (lengths), FS026 (an open input read in segments of two
    lengths), FS032 (a canvas of another size).

    >>> from flexspec import causal
    >>> kept = segments({"text": 2, "video": 2}, {("text", "text"): causal(), ("video", "video"): True})
    >>> kept.dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    _check_lengths(lengths)
    if not isinstance(table, Mapping):
        message = f"the table is a {type(table).__name__}"
        raise FlexSpecError("FS023", message, fix='{("text", "video"): mask}', where=user_caret())
    starts = dict(zip(lengths, accumulate(lengths.values(), initial=0), strict=False))
    parts: list[Mask] = []
    for pair, value in table.items():
        if not isinstance(pair, tuple) or len(pair) != 2 or any(name not in lengths for name in pair):
            message = f"the table names {pair!r}"
            fix = f"give (query segment, key segment) of {choices(lengths)}"
            raise FlexSpecError("FS021", message, fix=fix, where=user_caret())
        item = _as_mask(pair, value)
        inside = _inside(starts[pair[0]], lengths[pair[0]], starts[pair[1]], lengths[pair[1]])
        if item == Mask.constant(True):
            parts.append(inside)
        elif item != Mask.constant(False):
            parts.append(inside & _moved(item, pair, lengths, starts))
    kept = united(parts) if parts else Mask.constant(False)
    return kept.named("segments", lengths=dict(lengths), table=dict(table))


def _check_lengths(lengths: Any) -> None:
    if not isinstance(lengths, Mapping) or not lengths:
        message = f"lengths is {lengths!r}"
        raise FlexSpecError("FS023", message, fix='give {"text": 77, "video": 3600}', where=user_caret())
    for name, length in lengths.items():
        if not isinstance(name, str) or not name.isidentifier():
            message = f"{name!r} is no name for a segment"
            raise FlexSpecError("FS023", message, fix="give an identifier", where=user_caret())
        whole(f"the length of `{name}`", length)


def _as_mask(pair: tuple[str, str], value: Any) -> Mask:
    if value is None or isinstance(value, bool):
        return Mask.constant(bool(value))
    if not callable(value):
        message = f"between {pair[0]} and {pair[1]} stands a {type(value).__name__}"
        raise FlexSpecError("FS023", message, fix="give a mask, True or False", where=user_caret())
    return from_mask_mod(value)


def _inside(q_start: int, q_length: int, kv_start: int, kv_length: int) -> Mask:
    def region(q: Any, kv: Any) -> Any:
        rows = (q >= q_start) & (q < q_start + q_length)
        return rows & (kv >= kv_start) & (kv < kv_start + kv_length)

    return mask(region)


def _moved(item: Mask, pair: tuple[str, str], lengths: Mapping[str, int], starts: Mapping[str, int]) -> Mask:
    """The mask over local positions, as one over positions of the whole sequence.

    Outside its segment a local position is negative or too large. There the mask is cut off by the region,
    but a tensor would still be read: indices are clamped.
    """
    q_length, kv_length = lengths[pair[0]], lengths[pair[1]]
    for side, name in zip(("q", "kv"), pair, strict=True):
        on = item.on.side(side) if item.on else None
        if on is not None and on.size != lengths[name]:
            lengths_text = f"{pair[0]} {q_length:,} and {pair[1]} {kv_length:,}"
            message = f"{on} has {on.size:,} tokens, {lengths_text}"
            raise FlexSpecError("FS032", message, where=user_caret())
    longer = pair[0] if q_length >= kv_length else pair[1]
    dims = {"sequence": longer, "q_len": pair[0], "kv_len": pair[1]}
    _check_held(item, {dim: lengths[name] for dim, name in dims.items()})

    def clamp_index(node: Expr) -> Expr:
        if not isinstance(node, Load):
            return node
        names = tuple(f"{dims[dim]}_tokens" if dim in dims else dim for dim in node.input.dims)
        index = tuple(substitute(part, {"q": var("q.in"), "kv": var("kv.in")}) for part in node.index)
        return load(input_(node.input.name, names, node.input.type), index)

    values: dict[str, Expr] = {"q_len": const(q_length), "kv_len": const(kv_length)}
    for side, name in zip(("q", "kv"), pair, strict=True):
        local = apply("sub", var(side), const(starts[name])) if starts[name] else var(side)
        clamped = apply("min", apply("max", local, const(0)), const(lengths[name] - 1))
        values |= {side: local, f"{side}.in": clamped}
    expr = substitute(transform(item.flat, clamp_index), values)
    return replace(item, expr=expr, canvas=None, canvases=None, predicate=None)


def _check_held(item: Mask, sizes: Mapping[str, int]) -> None:
    """FS022 where a held tensor does not fit the segments."""
    for name, node in inputs_of(item.expr).items():
        if name not in item.tensors or item.tensors[name].dim() != len(node.dims):
            continue
        for dim, size in zip(node.dims, item.tensors[name].shape, strict=True):
            if size != sizes.get(dim, size):
                message = f"`{name}` in {item.label} has {size} entries, its segment {sizes[dim]} tokens"
                raise FlexSpecError("FS022", message, fix="give values of the segment's tokens", where=user_caret())
