"""The backends that come with flexspec, in the order in which `auto` asks them."""

from __future__ import annotations

from typing import Any

from flexspec.attention import Attention
from flexspec.errors import FlexSpecError, choices
from flexspec.user_line import user_caret

from .base import Backend, Call
from .blocks import BLOCKS
from .flash import FLASH
from .flex import FLEX
from .quantised import PRECISIONS
from .reference import REFERENCE
from .triton import TRITON

BACKENDS: tuple[Backend, ...] = (FLEX, FLASH, BLOCKS, REFERENCE, TRITON)
AUTOMATIC: tuple[Backend, ...] = (FLEX, BLOCKS, REFERENCE, TRITON)
"""`auto` takes the first that can run a call. No GPU has run the Triton kernels yet, so they are asked last, where
others, which run everything, have been asked before: they are chosen by name, and so is FLASH."""


LOW_PRECISION: tuple[Backend, ...] = (TRITON, REFERENCE)
"""`auto` for a precision below the tensors' own."""


def chosen(backend: str | Backend, precision: str | None = None) -> tuple[Backend, ...]:
    """The backends to choose from: `AUTOMATIC` for "auto", else the named one, or one of the user's own. FS041."""
    if isinstance(backend, Backend):
        return (backend,)
    if backend == "auto":
        return AUTOMATIC if precision is None else LOW_PRECISION
    named = tuple(each for each in BACKENDS if each.name == backend)
    if not named:
        names = ("auto", *(each.name for each in BACKENDS))
        fix = f"choose {choices(names)}, or give a Backend of your own"
        raise FlexSpecError("FS041", f"there is no backend {backend!r}", fix=fix, where=user_caret())
    return named


def ranked(backends: tuple[Backend, ...], call: Call) -> tuple[Backend, ...]:
    """Backends in the order in which a call asks them.

    Where there is a choice, `blocks` is first on a device for which FlexAttention has no kernels, and on a CPU where it
    cannot run a call, gives no lse, or pads one query to many.
    """
    if BLOCKS not in backends or len(backends) == 1 or call.q.device.type in ("cuda", "xpu"):
        return backends
    weight = call.lowered.weight
    lse = call.return_lse or (weight is not None and weight.kind != "taylor")  # other weights are made of lses
    if call.q.device.type == "cpu" and call.q.shape[2] > 1 and not lse and not FLEX.reasons_against(call):
        return backends
    return (BLOCKS, *(each for each in backends if each is not BLOCKS))


def check_precision(spec: Attention, precision: Any, skip: Any) -> None:
    """FS041 where a precision is unknown, FS042 for a weight that no kernel has in it, FS025 for a bound to skip by."""
    if precision is None and skip is None:
        return
    if precision not in PRECISIONS:
        message = f"there is no precision {precision!r}" if precision else "skip is of kernels in low precision"
        fix = f"give precision={choices(repr(each) for each in PRECISIONS)}"
        raise FlexSpecError("FS041", message, fix=fix, where=user_caret())
    if skip is not None and not (isinstance(skip, (int, float)) and 0 < skip < float("inf")):
        message = f"skip is {skip!r}"
        fix = "give nats, a number above 0: a key that is left out has less than exp(-skip) of a row's weight"
        raise FlexSpecError("FS025", message, fix=fix, where=user_caret())
    if spec.weight is not None and spec.weight.kind != "sink_logit":
        message = f"precision={precision!r} is for the softmax, and the weight is {spec.weight}"
        raise FlexSpecError("FS042", message, fix="leave precision out", where=user_caret())


def check_tuning(backends: tuple[Backend, ...], autotune: Any) -> None:
    """FS042 where tuning is asked of backends that have nothing to tune."""
    if autotune and not (len(backends) == 1 and backends[0].tunes):
        names = choices(repr(each.name) for each in BACKENDS if each.tunes)
        shown = backends[0].name if len(backends) == 1 else "auto"
        message = f"autotune times kernels, and the backend is {shown!r}"
        raise FlexSpecError("FS042", message, fix=f"give backend={names}", where=user_caret())
