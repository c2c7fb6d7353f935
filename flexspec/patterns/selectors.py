"""Published selectors: which blocks of keys q and k choose at each call. What each chooses is what its paper says;
where public code differs, the docstring names it.

Blocks are of memory: cubes under a tiled order, clusters under `fs.by_label`. Each is a term like any other mask:
`moba(64, 8) | fs.causal_window(256) & fs.causal()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import FlexSpecError
from ..inputs import Input
from ..mask import Mask, mask
from ..selecting import select
from ..selection import share, top_k, top_p
from ..traced import Traced
from ..user_line import user_caret
from .about import pattern
from .checks import whole
from .sequence import causal

__all__: list[str] = [
    "moba", "nsa", "vsa", "nabla", "draft", "sparge", "xattention", "region_topk", "quest", "expert_choice",
    "value_mask",
]  # fmt: skip

ALL = 1 << 24
"""A block of all queries: the most tokens that a block may have."""


@mask
def _own(q: Any, kv: Any, *, offset: int = 0, back: int = 0) -> Any:
    """A query's own token, or the one `back` before it: forced, the block that holds it."""
    return kv == q + offset - back


@mask
def _first(kv: Any) -> Any:
    return kv == 0


@pattern("moba(block=64, top=4)", "each query's best blocks by q . mean k, its own block among them")
def moba(block: int = 512, top: int = 3) -> Mask:
    """Causal; each query keeps its own block of keys and those with the largest q . mean k, `top` in all.

    block: tokens of a block of keys.
    top: blocks of a query, its own counted.

    The scores are not scaled, and each head chooses. Source: MoBA (Mixture of Block Attention). Raises FS025.

    >>> moba(block=64, top=4)
    moba(block=64, top=4)
    """
    whole("block", block)
    chosen = select((1, block), rule=top_k(top), scale=1.0, softmax=False, forced=_own(back=0), counted=True)
    return (causal() & chosen).named("moba", block=block, top=top)


@pattern("nsa(block=64, top=4)", "blocks by the summed softmax of a group, the first, own and previous among them")
def nsa(block: int = 64, top: int = 16) -> Mask:
    """Causal; the selected branch of native sparse attention: `top` blocks for each query, one choice for the query
    heads of a key head.

    block: tokens of a block of keys.
    top: blocks of a query; the first block, its own and the previous one are counted.

    Blocks that are complete before the query ends are scored: softmax of q . mean k / sqrt(head_dim), summed over the
    group. The paper compresses a block by a learned function; here it is the mean. Source: NSA. Raises FS025.

    >>> nsa(block=64, top=16)
    nsa(block=64, top=16)
    """
    whole("block", block)
    forced = _first() | _own(back=0) | _own(back=block)
    chosen = select(
        (1, block), rule=top_k(top), forced=forced, counted=True, shared="group", complete=True
    )
    return (causal() & chosen).named("nsa", block=block, top=top)


@pattern("vsa(block=64, top=4)", "the best blocks by mean q . mean k, of cubes under a tiled order")
def vsa(block: int = 64, top: int = 32) -> Mask:
    """Each block of queries keeps the `top` blocks of keys with the largest mean q . mean k.

    block: tokens of a block, 64 for cubes of 4 x 4 x 4: `order=fs.tiled(video, t=4, h=4, w=4)`.
    top: blocks of keys for each block of queries.

    The fine branch of video sparse attention; its coarse branch is an attention over the means, to be added with a gate
    of its own. Source: VSA. Raises FS025.

    >>> vsa(block=64, top=32)
    vsa(block=64, top=32)
    """
    return select(block, rule=top_k(top), softmax=False).named("vsa", block=block, top=top)


@pattern("nabla(block=64, mass=0.5)", "blocks by the softmax of mean q . mean k, until they have a share of the mass")
def nabla(block: int = 64, mass: float = 0.9) -> Mask:
    """Each block of queries keeps the blocks of keys with the largest softmax(mean q . mean k / sqrt(head_dim)), until
    they have `mass`; the one that reaches it is kept too.

    block: tokens of a block.
    mass: in (0, 1].

    The paper joins it with a sliding tile: `fs.nabla() | fs.sliding_tile(...)`. Source: NABLA. Raises FS025.

    >>> nabla(block=64, mass=0.9)
    nabla(block=64, mass=0.9)
    """
    return select(block, rule=top_p(mass)).named("nabla", block=block, mass=mass)


@pattern("draft(block=64, sparsity=0.75)", "the largest share of a head's map of mean q . mean k")
def draft(block: int = 128, sparsity: float = 0.75, text: Mask | None = None) -> Mask:
    """The `1 - sparsity` pairs of blocks of a head with the largest softmax(mean q . mean k / sqrt(head_dim)).

    block: tokens of a block, 128 for patches of 8 x 16 under a tiled order.
    sparsity: of the pairs of blocks, in [0, 1).
    text: a mask of what is kept in any case, such as text tokens.

    Source: DraftAttention. Raises FS025, FS020 (text with open values).

    >>> draft(block=128, sparsity=0.75)
    draft(block=128, sparsity=0.75)
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
        raise FlexSpecError("FS025", f"sparsity is {sparsity!r}", fix="give a number in [0, 1)", where=user_caret())
    shown: Mapping[str, Any] = {} if text is None else {"text": text}
    chosen = select(block, rule=share(1 - sparsity, over="head"), forced=text)
    return chosen.named("draft", block=block, sparsity=sparsity, **shown)


@pattern("sparge(block_q=128, block_kv=64, mass=0.9)", "blocks of alike keys by mass, all others kept")
def sparge(block_q: int = 128, block_kv: int = 64, mass: float = 0.9, similarity: float = 0.5) -> Mask:
    """The blocks of keys whose tokens are alike compete by softmax(mean q . mean k / sqrt(head_dim)) for `mass`; those
    whose tokens differ are kept by all, and blocks of queries whose tokens differ keep all.

    block_q: tokens of a block of queries.
    block_kv: tokens of a block of keys.
    mass: in (0, 1]; the block that would pass it is left out, but for a row's first.
    similarity: the mean cosine similarity of two tokens above which a block's are alike.

    The first stage of SpargeAttn. Its causal mode drops whole blocks, so that diagonal blocks see the future; here
    `fs.causal() & fs.sparge()` is causal by tokens. Source: SpargeAttn. Raises FS025.

    >>> sparge(mass=0.9)
    sparge(block_q=128, block_kv=64, mass=0.9, similarity=0.5)
    """
    chosen = select((block_q, block_kv), rule=top_p(mass, crossing=False), similarity=similarity)
    return chosen.named("sparge", block_q=block_q, block_kv=block_kv, mass=mass, similarity=similarity)


@pattern("xattention(block=64, stride=16, mass=0.9)", "blocks by the sums of their antidiagonals")
def xattention(block: int = 128, stride: int = 16, mass: float = 0.9, first: bool = False) -> Mask:
    """Causal; blocks by the sums of their antidiagonals: each `stride` queries, backwards, and each `stride` keys are
    one vector, softmax(q . k / (sqrt(head_dim) * stride)) is summed over a pair of blocks, until `mass`. A block of
    queries keeps its own.

    block: tokens of a block, a multiple of stride.
    stride: tokens that are joined.
    mass: in (0, 1]; the block that reaches it is kept.
    first: keep the first block of keys in any case. The public code keeps the first row in its place.

    Source: XAttention. Raises FS025.

    >>> xattention(block=128, stride=16, mass=0.9)
    xattention(block=128, stride=16, mass=0.9)
    """
    whole("block", block)
    forced = _own(back=0) | _first() if first else _own(back=0)
    chosen = select(block, summary="antidiagonal", stride=stride, rule=top_p(mass), forced=forced)
    shown = {"block": block, "stride": stride, "mass": mass} | ({"first": True} if first else {})
    return (causal() & chosen).named("xattention", **shown)


@pattern("region_topk(block=64, top=4)", "the best regions by mean q . mean k over all heads, shared by all")
def region_topk(block: int = 64, top: int = 4) -> Mask:
    """Each region keeps the `top` regions with the largest mean q . mean k / sqrt(head_dim), the mean over all heads,
    which share the choice.

    block: tokens of a region: a tile under `order=fs.tiled(...)`.
    top: regions of keys for each region of queries.

    Source: BiFormer, bi-level routing attention. Raises FS025.

    >>> region_topk(block=49, top=4)
    region_topk(block=49, top=4)
    """
    return select(block, rule=top_k(top), softmax=False, shared="all").named("region_topk", block=block, top=top)


@pattern("quest(page=16, top=8)", "pages by the most that q . k can be inside their bounds")
def quest(page: int = 16, top: int = 64) -> Mask:
    """Causal; each query keeps its own page and the pages with the largest sum over channels of
    max(q * min k, q * max k), which no key of the page exceeds.

    page: tokens of a page.
    top: pages of a query, its own counted.

    For decoding: q is the last token, `offset=kv_len - 1` at the call. Source: Quest. Raises FS025.

    >>> quest(page=16, top=64)
    quest(page=16, top=64)
    """
    whole("page", page)
    chosen = select(
        (1, page), summary="min_max", scale=1.0, softmax=False, rule=top_k(top), forced=_own(back=0), counted=True
    )
    return (causal() & chosen).named("quest", page=page, top=top)


@pattern("", "tokens that a head's router chose see each other", picture="fs.expert_choice(top=96)")
def expert_choice(scores: Any = None, top: int = 1024, first: bool = False) -> Mask:
    """Causal among the `top` tokens of each head with the largest router scores: a pair whose query and key are chosen.

    scores: an `fs.Input` of floats [batch | 1, heads | kv_heads | 1, 1, tokens]. Default: the input `router`; a call
        may give it without the third dim.
    top: tokens of a head.
    first: choose the first token in any case, as one of them.

    Tokens that are not chosen keep nothing: their output is 0. Source: MoSA. Raises FS023 (scores), FS025.

    >>> expert_choice(top=1024)
    expert_choice(scores=<router>, top=1024)
    """
    chosen = _of_tokens(scores, "router", top, _first() if first else None)
    shown = {"scores": chosen.scores, "top": top} | ({"first": True} if first else {})
    return (causal() & chosen.mask & chosen.mask.T).named("expert_choice", **shown)


@pattern("", "the keys of a head with the largest scores", picture="fs.value_mask(keep=96)")
def value_mask(scores: Any = None, keep: int = 1024) -> Mask:
    """Causal over the `keep` keys of each head with the largest scores.

    scores: an `fs.Input` of floats [batch | 1, heads | kv_heads | 1, 1, tokens]. Default: the input `key_scores`; a
        call may give it without the third dim.
    keep: keys of a head.

    Source: DMA (trainable dynamic mask attention). Raises FS023 (scores), FS025.

    >>> value_mask(keep=1024)
    value_mask(scores=<key_scores>, keep=1024)
    """
    chosen = _of_tokens(scores, "key_scores", keep, None)
    return (causal() & chosen.mask).named("value_mask", scores=chosen.scores, keep=keep)


class _OfTokens(NamedTuple):
    mask: Mask
    scores: Any


def _of_tokens(scores: Any, name: str, top: int, forced: Mask | None) -> _OfTokens:
    """The keys of a head with the largest scores, for all queries."""
    scores = Input(name, ("batch", "heads", "_1", "sequence"), float) if scores is None else scores
    mask = select((ALL, 1), rule=top_k(top), scores=scores, forced=forced, counted=True)
    return _OfTokens(mask, Traced(scores.source))
