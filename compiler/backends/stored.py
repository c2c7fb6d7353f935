"""Keys and values kept in 8 bits, for decoding: a cache of half the bytes that `attend` takes in place of tensors.

Each token has a scale of its own, so that more tokens change nothing that is there. A constant is taken out of all
keys, which leaves the 8 bits to what tells them apart; it is chosen once, as softmax does not care which it is
(SageAttention, arXiv 2410.02367, takes the mean). Attention is computed with what is stored: no more is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexspec.errors import FlexSpecError, choices
from flexspec.user_line import user_caret

from .pages import gathered
from .quantised import PRECISIONS, in_blocks

DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class QuantisedTensor(NamedTuple):
    """Keys or values in 8 bits: they are `numbers * scale + mean`.

    numbers: int8 or e4m3 [batch, kv_heads, tokens, channels], or in pages [pages, page_size, kv_heads, channels].
    scale: float32, the same with one channel. mean: float32 [batch | 1, kv_heads, 1, channels], of keys; else None.
    """

    numbers: Tensor
    scale: Tensor
    mean: Tensor | None = None

    def rounded(self, x: Tensor) -> QuantisedTensor:
        """Other tokens [batch, kv_heads, tokens, channels] in the same 8 bits, with the same mean."""
        x = x.detach().float()
        precision = "int8" if self.numbers.dtype == torch.int8 else "fp8"
        numbers, scale = in_blocks(x if self.mean is None else x - self.mean, 1, precision)
        return self._replace(numbers=numbers, scale=scale[..., None])

    def _more(self, x: Tensor) -> QuantisedTensor:
        """`rounded`, where the shapes fit: FS040."""
        batch, heads, _, channels = have = list(self.numbers.shape)
        if x.dim() != 4 or [*x.shape[:2], x.shape[3]] != [batch, heads, channels]:
            fix = f"give [{batch}, {heads}, new tokens, {channels}]"
            message = f"tokens are {list(x.shape)}, beside {have} in 8 bits"
            raise FlexSpecError("FS040", message, fix=fix, where=user_caret())
        return self.rounded(x)

    def append(self, x: Tensor) -> QuantisedTensor:
        """With more tokens [batch, kv_heads, tokens, channels] at the end, in new memory."""
        more = self._more(x)
        return self._replace(
            numbers=torch.cat([self.numbers, more.numbers], 2), scale=torch.cat([self.scale, more.scale], 2)
        )

    def write(self, x: Tensor, at: Tensor) -> None:
        """Tokens [batch, kv_heads, tokens, channels] in place of those `at`, an int64 tensor [tokens]."""
        more = self._more(x)
        self.numbers.view(torch.int8).index_copy_(2, at, more.numbers.view(torch.int8))
        self.scale.index_copy_(2, at, more.scale)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """As floats: of float64 exactly, else computed in float32."""
        work = torch.float64 if dtype == torch.float64 else torch.float32
        x = self.numbers.to(work) * self.scale
        return (x if self.mean is None else x + self.mean).to(dtype)

    def seen(self, dtype: torch.dtype) -> Tensor:
        """A view with the shape of `numbers` for checks, whose values mean nothing."""
        return torch.empty((), dtype=dtype, device=self.numbers.device).expand(self.numbers.shape)


Stored = tuple[QuantisedTensor, QuantisedTensor]


def quantise(k: Tensor, v: Tensor, precision: str = "int8", mean: Tensor | None = None) -> Stored:
    """Keys and values in 8 bits, to be given to `attend` in their place, and appended to.

    k, v: [batch, kv_heads, tokens, ...], finite.
    precision: "int8", or "fp8" (e4m3), which keeps small numbers beside large ones.
    mean: what is taken out of all keys, those appended too: float32 [batch | 1, kv_heads, 1, head_dim]; that of k where
        left out.

    Returns a `QuantisedTensor` for each, of half the bytes of bfloat16 and 4 for each token. A step of decoding by
    `backend="triton"` reads them as they are. Raises FS040 (shapes), FS041 (precision).

    >>> import flexspec as fs, torch
    >>> k, v = fs.quantise(torch.randn(1, 2, 600, 64), torch.randn(1, 2, 600, 64))
    >>> k, v = k.append(torch.randn(1, 2, 1, 64)), v.append(torch.randn(1, 2, 1, 64))
    >>> fs.compile(fs.everything())(torch.randn(1, 8, 1, 64), k, v).shape
    torch.Size([1, 8, 1, 64])
    """
    if precision not in DTYPES:
        fix = f"give precision={choices(map(repr, PRECISIONS))}"
        raise FlexSpecError("FS041", f"there is no precision {precision!r}", fix=fix, where=user_caret())
    if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3]:
        message = f"k {list(k.shape)}, v {list(v.shape)}: they are [batch, kv_heads, tokens, channels]"
        raise FlexSpecError("FS040", message, where=user_caret())
    if mean is None:
        mean = k.detach().mean(2, keepdim=True, dtype=torch.float32)
    nothing = torch.empty(0, dtype=DTYPES[precision])
    return QuantisedTensor(nothing, nothing, mean).rounded(k), QuantisedTensor(nothing, nothing).rounded(v)


def stored_of(k: Any, v: Any) -> Stored | None:
    """Keys and values in 8 bits, checked; None where they are tensors. FS023, FS040."""
    if not isinstance(k, QuantisedTensor) and not isinstance(v, QuantisedTensor):
        return None
    for name, x in (("k", k), ("v", v)):
        if not isinstance(x, QuantisedTensor) or x.numbers.dtype not in DTYPES.values():
            seen = f"of {x.numbers.dtype}" if isinstance(x, QuantisedTensor) else "a tensor beside one in 8 bits"
            raise FlexSpecError("FS023", f"{name} is {seen}", fix="k, v = fs.quantise(k, v)", where=user_caret())
        if x.scale.shape != (*x.numbers.shape[:-1], 1):
            message = f"the scale of {name} is {list(x.scale.shape)}, its numbers {list(x.numbers.shape)}"
            raise FlexSpecError("FS040", message, fix="a scale has one channel", where=user_caret())
    if v.mean is not None:
        raise FlexSpecError("FS040", "v has a mean", fix="leave it out: keys alone have one", where=user_caret())
    return k, v


def check_mean(k: QuantisedTensor, batch: int, kv_heads: int, head_dim: int) -> None:
    """FS040 where the mean of the keys is not that of a call's."""
    if k.mean is not None and tuple(k.mean.shape) not in [(each, kv_heads, 1, head_dim) for each in (1, batch)]:
        message = f"the mean of k is {list(k.mean.shape)}, and there are {kv_heads} key heads of {head_dim} channels"
        fix = f"give [1, {kv_heads}, 1, {head_dim}], or one for each of {batch} sequences"
        raise FlexSpecError("FS040", message, fix=fix, where=user_caret())


def apart(k: Any, v: Any) -> tuple[Any, Any, dict[str, Tensor]]:
    """The numbers of keys and values in 8 bits, and what else they have, by names that no value of a user's has."""
    if not isinstance(k, QuantisedTensor) or not isinstance(v, QuantisedTensor):
        return k, v, {}
    beside = {"k.scale": k.scale, "v.scale": v.scale, "k.mean": k.mean}
    return k.numbers, v.numbers, {name: x for name, x in beside.items() if x is not None}


def together(k: Tensor, v: Tensor, values: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """What `apart` took apart, and the other values."""
    if "k.scale" not in values:
        return k, v, dict(values)
    others = {name: x for name, x in values.items() if not name.startswith(("k.", "v."))}
    stored = QuantisedTensor(k, values["k.scale"], values.get("k.mean")), QuantisedTensor(v, values["v.scale"])
    return *stored, others


def as_floats(stored: Stored, dtype: torch.dtype, page_table: Tensor | None, kv_len: int) -> tuple[Tensor, Tensor]:
    """[batch, kv_heads, kv_len, channels] as floats, copied out of pages if they are in pages."""

    def floats(x: QuantisedTensor) -> Tensor:
        if page_table is not None:
            numbers, scale = (gathered(each, page_table, kv_len) for each in (x.numbers, x.scale))
            x = x._replace(numbers=numbers, scale=scale)
        return x.restored(dtype)

    return floats(stored[0]), floats(stored[1])
