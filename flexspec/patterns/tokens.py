"""Tokens that say what they see: types, memories, trees, graphs.

A tensor with a value for each token is [sequence] or [batch, sequence], and [batch, heads, sequence] where a pattern
says so; a batch of one serves all, and so does one head.
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
from .about import pattern
from .checks import Given, PerToken, as_tensor, per_token, whole

__all__: list[str] = ["TOKEN_TYPES", "last_global", "token_types", "tree", "bridge", "block_diffusion", "adjacency"]

TOKEN_TYPES: Mapping[str, int] = {"global": 0, "local": 1, "sliding": 2}
"""What the numbers in `token_types(types)` mean."""
BITS = 32
"""Keys in one word of `adjacency`'s table."""


def last_global(types: torch.Tensor) -> torch.Tensor:
    """The position of the last global token up to each token, -1 where there is none: int64 of the shape of `types`.

    It is what `token_types` needs of types that are given when it runs: `types=types, last_global=last_global(types)`.

    types: int [..., sequence], of `TOKEN_TYPES`.

    Raises FS022 (no dim, or an empty one), FS023 (not integers).

    >>> last_global(torch.tensor([1, 0, 1, 2, 0])).tolist()
    [-1, 1, 1, 1, 4]
    """
    types = as_tensor("types", types, [1, 2, 3])
    place = torch.arange(types.shape[-1], device=types.device).expand(types.shape)
    return torch.where(types == TOKEN_TYPES["global"], place, -1).cummax(dim=-1).values


@pattern(
    "token_types(window=64)",
    "keys that are seen for ever, up to the next global one, or for a window",
    picture="fs.token_types(torch.arange(512) % 50 % 3, window=32)",
)
def token_types(types: Any = None, window: int | None = None) -> Mask:
    """Causal; each key says for how long it is seen: `global` for ever, `local` up to the next global token,
    `sliding` by the next `window` queries, the first of them its own.

    A query keeps all global keys before it, the local ones since the last global one, and at most `window` sliding
    ones. The last global token up to each query, `last_global(types)`, is computed here once.

    types: int [sequence], [batch, sequence] or [batch, heads, sequence]: 0 global, 1 local, 2 sliding (`TOKEN_TYPES`).
        Default: the run-time input `types` [batch, sequence]. With run-time types the mask also reads the input
        `last_global` of the same dims, which a call gives as `last_global=fs.last_global(types)`: it depends on all
        tokens between two, which no predicate of a pair can read. Such types are not checked; others than these three
        are never seen.
    window: queries, at least 1.

    Source: Neural Attention Search. Raises FS022 (shape), FS023 (not integers), FS025 (window; another type), FS026 (an
    input that is called `last_global` itself).

    >>> token_types([1, 0, 1, 2, 1], window=1).dense(5).int()[0, 0].tolist()[4]
    [0, 1, 1, 0, 1]
    >>> types = torch.tensor([[1, 0, 1, 2, 1]])
    >>> token_types(window=1).dense(5, types=types, last_global=last_global(types)).int()[0, 0].tolist()[4]
    [0, 1, 1, 0, 1]
    """
    whole("window", window)
    kind = per_token("types", types, "types", heads=True)
    since = _since_last_global(kind)

    def seen(b: Any, h: Any, q: Any, kv: Any) -> Any:
        key = kind.read(b, h, kv)
        local = (key == TOKEN_TYPES["local"]) & (since.read(b, h, q) <= kv)
        sliding = (key == TOKEN_TYPES["sliding"]) & (q - kv < window)
        return (q >= kv) & ((key == TOKEN_TYPES["global"]) | local | sliding)

    shown = {} if types is None else {"types": kind.shown}
    return mask(seen)(**kind.held, **since.held).named("token_types", **shown, window=window)


def _since_last_global(kind: PerToken) -> PerToken:
    """The reader of the last global token's position: held where the types are, else an input of the same dims."""
    tensor, source = kind.given.tensor, kind.given.source.source
    if tensor is None:
        if source.name == "last_global":
            message = "`last_global` is the input of the types, and that of the last global tokens"
            raise FlexSpecError("FS026", message, fix="rename the types", where=user_caret())
        return PerToken(Given(Input("last_global", source.dims)), None)
    if int(tensor.min()) < 0 or int(tensor.max()) > 2:
        message = f"types go from {int(tensor.min())} to {int(tensor.max())}"
        legal = choices(f"{number} ({name})" for name, number in TOKEN_TYPES.items())
        raise FlexSpecError("FS025", message, fix=f"each is {legal}", where=user_caret())
    return PerToken(Given(Input("last_global", source.dims), last_global(tensor)), None)


@pattern("", "a token and its ancestors", picture="fs.tree([(i - 1) // 2 for i in range(512)])")
def tree(parents: Any) -> Mask:
    """A token sees itself and its ancestors: a query keeps as many keys as its depth in the tree.

    The tree becomes an interval of a depth-first walk for each token, computed here once.

    parents: int [sequence] or [batch, sequence], the position of each token's parent, -1 for a root; parents
        may stand after their children. A prompt is a chain: `parents[i] = i - 1`.

    Source: speculative decoding (Medusa, EAGLE, SpecInfer). Raises FS022 (shape), FS023 (not integers), FS025 (a parent
    outside the sequence, a cycle).

    >>> tree([-1, 0, 0, 1]).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    tensor = as_tensor("parents", parents, [1, 2])
    rows = [_walk_of(row) for row in tensor.reshape(-1, tensor.shape[-1]).tolist()]
    shape, device = tensor.shape, tensor.device
    enter, leave = (
        per_token(name, torch.tensor([row[i] for row in rows], device=device).reshape(shape), name)
        for i, name in enumerate(("enter", "leave"))
    )
    in_order = bool((tensor < torch.arange(tensor.shape[-1], device=device)).all())

    def ancestor(b: Any, q: Any, kv: Any) -> Any:
        time = enter.read(b, None, q)
        kept = (enter.read(b, None, kv) <= time) & (time < leave.read(b, None, kv))
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


@pattern(
    "bridge(chunk=512, window=512)",
    "a window, the last token of each chunk, and memory tokens",
    picture="fs.bridge(chunk=64, memory_ids=torch.arange(512) < 8, window=48)",
)
def bridge(chunk: int, memory_ids: Any = None, window: int | None = None) -> Mask:
    """Causal: the last `window` keys, the last token of every chunk (the bridges), and the memory tokens.

    A query keeps `window` keys, one for each whole chunk before them, and the memory tokens so far.

    chunk: tokens, at least 1.
    memory_ids: bool [sequence], [batch, sequence] or [batch, heads, sequence], true where a token is memory. Default:
        the run-time input `memory_ids` [batch, sequence].
    window: keys, the query's own included, at least 1.

    Source: LongCoder, where bridge tokens are inserted once in a chunk and memory is chosen by the code's syntax.
    Raises FS022 (shape), FS023 (not booleans), FS025 (chunk, window).

    >>> bridge(2, torch.tensor([True, False, False, False, False]), window=1).dense(5).int()[0, 0].tolist()[4]
    [1, 1, 0, 1, 1]
    """
    whole("chunk", chunk)
    whole("window", window)
    memory = per_token("memory_ids", memory_ids, "memory_ids", bool, heads=True)

    def kept(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return (q >= kv) & ((q - kv < window) | (kv % chunk == chunk - 1) | memory.read(b, h, kv))

    shown = {} if memory_ids is None else {"memory_ids": memory.shown}
    return mask(kept)(**memory.held).named("bridge", chunk=chunk, **shown, window=window)


@mask
@pattern(
    "block_diffusion(block=16, n=512)",
    "noisy blocks that see clean ones before",
    picture="fs.block_diffusion(block=32, n=256)",
)
def block_diffusion(q: Any, kv: Any, *, block: PositiveInt, n: PositiveInt) -> Any:
    """Training mask of block diffusion on `2 * n` tokens: `n` noisy ones, then the same `n` clean.

    A noisy query of block `B` keeps its own noisy block and the `B` clean blocks before it; a clean one keeps
    the clean blocks up to its own: `(B + 1) * block` keys in both cases.

    block: tokens, at least 1.
    n: clean tokens, at least 1.

    Source: BD3-LM. Raises FS025 (block, n).

    >>> block_diffusion(block=1, n=2).dense(4).int()[0, 0].tolist()
    [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    q_block, kv_block = (q % n) // block, (kv % n) // block
    noisy = (q < n) & (((kv < n) & (q_block == kv_block)) | ((kv >= n) & (q_block > kv_block)))
    return noisy | ((q >= n) & (kv >= n) & (q_block >= kv_block))


@pattern("", "the neighbours in a graph", picture="fs.adjacency(torch.eye(512).roll(100, 1).to_sparse_csr())")
def adjacency(csr: Any) -> Mask:
    """A query keeps the keys in its list of neighbours: as many as its row has entries.

    The lists become a table of one bit for each pair, computed here once: `q_len * kv_len / 8` bytes.

    csr: a torch sparse CSR tensor [q_len, kv_len] (every stored entry is a neighbour, whatever its value), or
        a pair (row pointers, key indices) of a square graph.

    Source: mesh transformers, graph attention (GAT). Raises FS022 (no list of pointers or of indices), FS023 (neither
    of the two), FS025 (pointers that do not ascend, indices outside).

    >>> adjacency((torch.tensor([0, 2, 3, 3]), torch.tensor([0, 2, 1]))).dense(3).int()[0, 0].tolist()
    [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    """
    pointers, keys, columns = _read_csr(csr)
    counts = pointers.diff()
    if int(pointers[0]) != 0 or int(pointers[-1]) != len(keys) or bool((counts < 0).any()):
        message = f"row pointers go from {int(pointers[0])} to {int(pointers[-1])}, there are {len(keys)} indices"
        raise FlexSpecError("FS025", message, fix="ascend from 0 to the number of indices", where=user_caret())
    if len(keys) and (int(keys.min()) < 0 or int(keys.max()) >= columns):
        message = f"key indices go from {int(keys.min())} to {int(keys.max())}, of {columns} keys"
        raise FlexSpecError("FS025", message, where=user_caret())
    words = -(-columns // BITS)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=keys.device), counts)
    pairs = torch.unique(rows * (words * BITS) + keys)  # an entry that is listed twice sets its bit once
    table = torch.zeros(len(counts) * words, dtype=torch.int64, device=keys.device)
    table.scatter_add_(0, pairs // BITS, 1 << (pairs % BITS))
    table = table.to(torch.int32).view(len(counts), words)  # the highest bit becomes the sign
    neighbours = Input("neighbours", ("q_len", "_"))
    listed = mask(lambda q, kv: (neighbours[q, kv // BITS] >> (kv % BITS)) & 1 == 1)
    return listed(neighbours=table).named("adjacency", rows=len(counts), entries=len(keys))


def _read_csr(csr: Any) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Row pointers, key indices and the number of keys."""
    if isinstance(csr, torch.Tensor) and csr.layout is torch.sparse_csr and csr.dim() == 2:
        return csr.crow_indices().long(), csr.col_indices().long(), csr.shape[1]
    if not isinstance(csr, (tuple, list)) or len(csr) != 2:
        message = f"csr is a {type(csr).__name__}"
        fix = "give tensor.to_sparse_csr(), or (row pointers, key indices)"
        raise FlexSpecError("FS023", message, fix=fix, where=user_caret())
    pointers = as_tensor("the row pointers", csr[0], [1]).long()
    if len(pointers) < 2:
        raise FlexSpecError("FS022", "there is one row pointer", fix="give rows + 1 of them", where=user_caret())
    keys = csr[1] if isinstance(csr[1], torch.Tensor) else torch.as_tensor(csr[1])
    keys = as_tensor("the key indices", keys, [1]).long() if keys.numel() else keys.long().reshape(0)
    return pointers, keys, len(pointers) - 1
