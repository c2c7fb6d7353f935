"""Documents, labels and trees: masks that read a value of each token.

A tensor with a value for each token is [sequence] or [batch, sequence]; a batch of one serves all. `sequence`
is the longer of the two lengths. Its shape is checked again when the mask runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveInt

from ..errors import FlexSpecError, choices
from ..inputs import Input
from ..mask import Mask, mask
from ..user_line import user_caret
from .checks import as_tensor, per_token, whole

TOKEN_TYPES: Mapping[str, int] = {"global": 0, "local": 1, "sliding": 2}
"""What the numbers in `token_types(types)` mean."""


def document(ids: Any = None) -> Mask:
    """Tokens of the same document see each other: a query keeps as many keys as its document has tokens.

    ids: int [sequence] or [batch, sequence]; a negative id is padding, which neither sees nor is seen.
    Without `ids` the mask reads the run-time input `document_id` [batch, sequence]. Source: packed training;
    PyTorch's document mask has no padding id. Raises FS022 (shape), FS023 (not integers).

    >>> document(torch.tensor([0, 0, 1, -1])).dense(4).int()[0, 0].tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """
    tensor = None if ids is None else as_tensor("ids", ids, [1, 2])
    of = per_token("document_id", tensor)

    def same(b: Any, q: Any, kv: Any) -> Any:
        return (of.read(b, None, q) == of.read(b, None, kv)) & (of.read(b, None, q) >= 0)

    return mask(same)(**of.held).named("document", **({} if tensor is None else {"ids": tensor}))


def padding(lengths: Any = None) -> Mask:
    """Only the first `lengths[b]` tokens of each sequence see, and are seen: a query keeps `lengths[b]` keys.

    lengths: int [batch], a tensor or a list; without it the run-time input `lengths` [batch]. A padding query
    keeps nothing; libraries that mask only the keys give it an average of values instead. Raises FS022,
    FS023, FS025.

    >>> padding([2]).dense(3).int()[0, 0].tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    tensor = None if lengths is None else as_tensor("lengths", lengths, [1])
    if tensor is not None and int(tensor.min()) < 0:
        raise FlexSpecError("FS025", "lengths has a negative entry", fix="give token counts", where=user_caret())
    limit = Input("lengths", ("batch",))
    made = mask(lambda b, q, kv: (q < limit[b]) & (kv < limit[b]))
    if tensor is None:
        return made.named("padding")
    return made(lengths=tensor).named("padding", lengths=tensor)


def same_label(labels: Any = None, background: int | None = None) -> Mask:
    """Tokens with the same label see each other: a query keeps as many keys as its label has tokens.

    labels: int [sequence], [batch, sequence] or [batch, heads, sequence]; without it the run-time input
    `labels` [batch, sequence]. background: a label whose tokens all queries see; its own queries see only
    each other. Any label is legal, negative ones too (`document` reads those as padding). Source: FLATTEN and
    Trajectory Attention (flow paths), Routing Transformer (clusters). Raises FS022, FS023, FS025.

    >>> same_label([5, 7, 5, 0], background=0).dense(4).int()[0, 0].tolist()
    [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 1]]
    """
    tensor = None if labels is None else as_tensor("labels", labels, [1, 2, 3])
    if background is not None:
        whole("background", background, None)
    of = per_token("labels", tensor)

    def same(b: Any, h: Any, q: Any, kv: Any) -> Any:
        key = of.read(b, h, kv)
        kept = of.read(b, h, q) == key
        return kept if background is None else kept | (key == background)

    shown = {"labels": tensor, "background": background}
    shown = {name: value for name, value in shown.items() if value is not None}
    return mask(same)(**of.held).named("same_label", **shown)


def token_types(types: Any, window: int) -> Mask:
    """Causal; each key says for how long it is seen: `global` for ever, `local` up to the next global token,
    `sliding` by the next `window` queries, the first of them its own.

    types: int [sequence] or [batch, sequence], 0 global, 1 local, 2 sliding (`TOKEN_TYPES`). A query keeps
    all global keys before it, the local ones since the last global one, and at most `window` sliding ones.
    The position of the last global token up to each query is computed here, once. Source: Neural Attention
    Search. Raises FS022, FS023, FS025 (another type).

    >>> token_types([1, 0, 1, 2, 1], window=1).dense(5).int()[0, 0].tolist()[4]
    [0, 1, 1, 0, 1]
    """
    tensor = as_tensor("types", types, [1, 2])
    whole("window", window)
    if int(tensor.min()) < 0 or int(tensor.max()) > 2:
        message = f"types go from {int(tensor.min())} to {int(tensor.max())}"
        legal = choices(f"{number} ({name})" for name, number in TOKEN_TYPES.items())
        raise FlexSpecError("FS025", message, fix=f"each is {legal}", where=user_caret())
    place = torch.arange(tensor.shape[-1], device=tensor.device).expand(tensor.shape)
    last = torch.where(tensor == TOKEN_TYPES["global"], place, -1).cummax(dim=-1).values
    kind, since = per_token("types", tensor), per_token("last_global", last)

    def seen(b: Any, q: Any, kv: Any) -> Any:
        key = kind.read(b, None, kv)
        local = (key == TOKEN_TYPES["local"]) & (since.read(b, None, q) <= kv)
        sliding = (key == TOKEN_TYPES["sliding"]) & (q - kv < window)
        return (q >= kv) & ((key == TOKEN_TYPES["global"]) | local | sliding)

    return mask(seen)(**kind.held, **since.held).named("token_types", types=tensor, window=window)


def shared_prefix(prefix: int, branch_ids: Any) -> Mask:
    """Causal inside the prefix and inside each branch; every branch sees the prefix, and no other branch.

    prefix: tokens of the prefix, which stands first. branch_ids: int [sequence] or [batch, sequence] over the
    whole sequence; its first `prefix` entries are not read, and a negative id after them is padding. A query
    keeps the prefix and the tokens of its branch so far. Source: tree decoding, shared-prefix RL. Raises
    FS022, FS023, FS025.

    >>> shared_prefix(1, [0, 1, 1, 2]).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    """
    whole("prefix", prefix, 0)
    tensor = as_tensor("branch_ids", branch_ids, [1, 2])
    of = per_token("branch_ids", tensor)

    def branch(b: Any, q: Any, kv: Any) -> Any:
        mine = of.read(b, None, q)
        real = (q < prefix) | (mine >= 0)
        return (q >= kv) & real & ((kv < prefix) | (mine == of.read(b, None, kv)))

    return mask(branch)(**of.held).named("shared_prefix", prefix=prefix, branch_ids=tensor)


def tree(parents: Any) -> Mask:
    """A token sees itself and its ancestors: a query keeps as many keys as its depth in the tree.

    parents: int [sequence] or [batch, sequence], the position of each token's parent, -1 for a root; parents
    may stand after their children. A prompt is a chain: `parents[i] = i - 1`. The tree becomes an interval of
    a depth-first walk for each token, computed here once. Source: speculative decoding (Medusa, EAGLE,
    SpecInfer). Raises FS022, FS023, FS025 (a parent outside the sequence, a cycle).

    >>> tree([-1, 0, 0, 1]).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    tensor = as_tensor("parents", parents, [1, 2])
    rows = [_walk_of(row) for row in tensor.reshape(-1, tensor.shape[-1]).tolist()]
    shape, device = tensor.shape, tensor.device
    enter = per_token("enter", torch.tensor([row[0] for row in rows], device=device).reshape(shape))
    leave = per_token("leave", torch.tensor([row[1] for row in rows], device=device).reshape(shape))
    in_order = bool((tensor < torch.arange(tensor.shape[-1], device=device)).all())

    def ancestor(b: Any, q: Any, kv: Any) -> Any:
        at = enter.read(b, None, q)
        kept = (enter.read(b, None, kv) <= at) & (at < leave.read(b, None, kv))
        return (q >= kv) & kept if in_order else kept  # known of the tree: maps and proofs need not find it

    return mask(ancestor)(**enter.held, **leave.held).named("tree", parents=tensor)


def _walk_of(parents: list[int]) -> tuple[list[int], list[int]]:
    """For each node of a forest, when a depth-first walk enters and leaves it."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        if not -1 <= parent < len(parents):
            message = f"the parent of token {node} is {parent}"
            fix = f"give a position below {len(parents)}, or -1 for a root"
            raise FlexSpecError("FS025", message, fix=fix, where=user_caret())
        children.setdefault(parent, []).append(node)
    enter, leave = [-1] * len(parents), [-1] * len(parents)
    time = 0
    todo = [(node, False) for node in reversed(children.get(-1, []))]
    while todo:
        node, done = todo.pop()
        if done:
            leave[node] = time
            continue
        enter[node], time = time, time + 1
        todo.append((node, True))
        todo += [(child, False) for child in reversed(children.get(node, []))]
    if time < len(parents):
        message = f"token {enter.index(-1)} never reaches a root: its parents form a cycle"
        raise FlexSpecError("FS025", message, fix="give the roots the parent -1", where=user_caret())
    return enter, leave


def bridge(chunk: int, memory_ids: Any, window: int) -> Mask:
    """Causal: the last `window` keys, the last token of every chunk (the bridges), and the memory tokens.

    memory_ids: bool [sequence] or [batch, sequence], true where a token is memory. A query keeps `window`
    keys, one for each whole chunk before them, and the memory tokens so far. Source: LongCoder, where bridge
    tokens are inserted once in a chunk and memory is chosen by the code's syntax. Raises FS022, FS023, FS025.

    >>> bridge(2, torch.tensor([True, False, False, False, False]), window=1).dense(5).int()[0, 0].tolist()[4]
    [1, 1, 0, 1, 1]
    """
    whole("chunk", chunk)
    whole("window", window)
    tensor = as_tensor("memory_ids", memory_ids, [1, 2], bool)
    memory = per_token("memory_ids", tensor, bool)

    def kept(b: Any, q: Any, kv: Any) -> Any:
        return (q >= kv) & ((q - kv < window) | (kv % chunk == chunk - 1) | memory.read(b, None, kv))

    return mask(kept)(**memory.held).named("bridge", chunk=chunk, memory_ids=tensor, window=window)


@mask
def block_diffusion(q: Any, kv: Any, *, block: PositiveInt, n: PositiveInt) -> Any:
    """Training mask of block diffusion on `2 * n` tokens: `n` noisy ones, then the same `n` clean.

    A noisy query of block `B` keeps its own noisy block and the `B` clean blocks before it; a clean one keeps
    the clean blocks up to its own: `(B + 1) * block` keys in both cases. Source: BD3-LM. Raises FS025.

    >>> block_diffusion(block=1, n=2).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    q_block, kv_block = (q % n) // block, (kv % n) // block
    noisy = (q < n) & (((kv < n) & (q_block == kv_block)) | ((kv >= n) & (q_block > kv_block)))
    return noisy | ((q >= n) & (kv >= n) & (q_block >= kv_block))
