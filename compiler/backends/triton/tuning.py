"""Tiles, warps and stages by timing, where a compiled attention asks for it: once for each kind of call on each GPU.
Each is compiled and read first, as ahead of time, and timed if nothing is seen to be wrong with it.

What was found is a small JSON file in the cache folder, named by what it depends on; later processes read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from subprocess import SubprocessError
from typing import Any, Protocol

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from ...blocks.block_map import BlockMap
from ...blocks.grid import Grid
from .configs import BY_KEYS, TABLES, Config, config_of, divisor, most_warps
from .functions import cache_folder, write
from .gpus import GPUS
from .reading import reader
from .report import KernelReport
from .rows import takes_lists

Start = Callable[[Any, Config], None]
"""Starts a kernel of a `Launch` with a configuration."""
Timer = Callable[[Callable[[], None]], float]
"""Milliseconds of a start."""
Reader = Callable[[Config], list[str]]
"""What is wrong with a kernel, compiled with a configuration and not run (`KernelReport.flaws`)."""


class Setting(Protocol):
    """What a choice depends on beside the kernel and its tensors."""

    @property
    def block_map(self) -> BlockMap: ...
    @property
    def arch(self) -> str: ...
    @property
    def group(self) -> int: ...
    @property
    def autotune(self) -> bool: ...


def launched(
    start: Start, kernel: Any, setting: Setting, q: torch.Tensor, v: torch.Tensor, functions: tuple[Any, ...]
) -> None:
    """Start a kernel with the configuration that the setting asks for: the table's, or the best by timing."""
    timer = timer_on(q.device, kernel) if setting.autotune else None
    read = reader_on(start, kernel, setting, (q.shape[3], v.shape[3])) if timer else None
    start(setting, chosen(partial(start, setting), kernel, setting, q, v, functions, timer, read))


def timer_on(device: torch.device, kernel: Any) -> Timer | None:
    """Nothing where timing is worth nothing, as in the interpreter, or must not be, as in the capture of a graph."""
    if isinstance(kernel, InterpretedFunction) or device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return None
    return lambda start: float(triton.testing.do_bench(start, warmup=5, rep=20, return_mode="median"))


def reader_on(start: Start, kernel: Any, setting: Any, head_dims: tuple[int, int]) -> Reader | None:
    """Nothing where kernels are interpreted, or for a GPU that is not known."""
    if isinstance(kernel, InterpretedFunction) or setting.arch not in GPUS:
        return None

    def flaws(config: Config) -> list[str]:
        found: list[KernelReport] = []
        try:
            start(replace(setting, start=reader(setting.arch, head_dims, found)), config)
        except triton.TritonError as error:
            return [type(error).__name__]
        except (OSError, RuntimeError, SubprocessError):  # without the tool that reads it, timing tells alone
            return []
        return [flaw for each in found for flaw in each.flaws]

    return flaws


def chosen(
    start: Callable[[Config], None],
    kernel: Any,
    setting: Setting,
    q: torch.Tensor,
    v: torch.Tensor,
    functions: tuple[Any, ...],
    timer: Timer | None,
    read: Reader | None = None,
) -> Config:
    """The table's choice without a timer, else the fastest, from the cache folder or timed now.

    read: those in which it finds a flaw are not timed, but for the table's own.
    """
    name, grid = kernel.fn.__name__, setting.block_map.grid
    first = config_of(name, setting.arch, grid, q, v, _listed(name, setting))
    if timer is None:
        return first
    key = (name, q.dtype, v.dtype, q.shape, v.shape[3], setting.group, functions)
    given = {"start": start, "facts": partial(facts_of, kernel, setting, q, v, functions), "timer": timer, "read": read}
    return setting.block_map.derive(_tuned, key, configs=candidates(name, grid, first), **given)


def _tuned(
    _: BlockMap, key: Hashable, facts: Callable[[], dict[str, Any]], configs: list[Config], **given: Any
) -> Config:
    """The choice for one block map, kernel, shape and functions, which the key tells."""
    return _kept_or_timed(facts(), configs, **given)


def facts_of(
    kernel: Any, setting: Setting, q: torch.Tensor, v: torch.Tensor, functions: tuple[Any, ...]
) -> dict[str, Any]:
    """All that a choice depends on. Lengths, and programs in a row, count up to powers of two."""
    grid = setting.block_map.grid
    return {
        "kernel": kernel.fn.__name__,
        "gpu": torch.cuda.get_device_name(q.device) if q.device.type == "cuda" else "none",
        "dtype": str(q.dtype),
        "dtype of v": str(v.dtype),
        "head_dims": [q.shape[3], v.shape[3]],
        "block_size": [grid.block_q, grid.block_kv],
        "lists": _listed(kernel.fn.__name__, setting),
        "group": setting.group,
        "batch * heads": _rounded(q.shape[0] * q.shape[1]),
        "q_len": _rounded(grid.q_len),
        "kv_len": _rounded(grid.kv_len),
        "functions": _names(functions),
        "source": getattr(kernel, "cache_key", ""),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def _listed(kernel: str, setting: Setting) -> bool:
    return kernel in TABLES and takes_lists(setting.block_map, kernel)


def _names(functions: Any) -> Any:
    """Of functions, however nested: a generated one's module is named by its content."""
    if functions is None:
        return None
    if isinstance(functions, tuple):
        return [_names(each) for each in functions]
    return f"{functions.fn.__module__}.{functions.fn.__name__}"


def _rounded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def candidates(kernel: str, grid: Grid, first: Config) -> list[Config]:
    """The configurations that are timed, `first` first. Their tiles divide the blocks of the map."""
    if kernel == "decode":
        sides: tuple[list[int], ...] = ([first.block_m], _divisors(grid.block_kv, 32, 64, 128))
    else:
        least = 64 if kernel == "forward" else 32
        keys = (32, 64) if kernel == "low_precision" else (32, 64, 128)
        sides = (
            sorted({*_divisors(grid.block_q, least, 64, 128), first.block_m}),
            sorted({*_divisors(grid.block_kv, *keys), first.block_n}),
        )
    each = [Config(m, n, warps, stages) for m, n, warps, stages in product(*sides, (2, 4, 8), (2, 3))]
    if first.tma:
        lates = (False, True) if kernel == "forward" else (False,)
        each = [one._replace(tma=True, late=late) for one in each if one.warps >= 4 for late in lates]
    most = 128 * 128 if kernel == "forward" else 64 * 128
    fitting = (one for one in each if one.block_m * one.block_n <= most and one.warps in _warps(kernel, one))
    more = (first._replace(max_registers=None), first._replace(tma=False, late=False))
    return list(dict.fromkeys([first, *more, *fitting]))


def _warps(kernel: str, config: Config) -> tuple[int, ...]:
    """Eight only where each has rows of its own; two would leave the wide products of newer GPUs unused."""
    own = config.block_n if kernel in BY_KEYS else config.block_m
    if kernel == "decode" or most_warps(own) >= 8:
        return 4, 8
    return (4,) if most_warps(own) >= 4 else (2, 4)


def _divisors(block: int, *most: int) -> list[int]:
    return sorted({divisor(block, each) for each in most})


def _kept_or_timed(
    facts: dict[str, Any], configs: list[Config], start: Callable[[Config], None], timer: Timer, read: Reader | None
) -> Config:
    path = path_of(facts)
    try:
        kept = Config(**json.loads(path.read_text())["best"])
        if kept in configs:
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing there, or nothing that can be read
    flawed = _flawed(configs, read) if read else {}
    times: dict[Config, float] = {}
    for config in configs:
        if config in flawed:
            continue
        try:
            times[config] = timer(lambda config=config: start(config))  # type: ignore[misc]
        except triton.TritonError:  # more registers or shared memory than there is
            continue
    if not times:
        return configs[0]
    ranked = sorted(times, key=lambda config: times[config])
    timed = [{**config._asdict(), "milliseconds": times[config]} for config in ranked]
    passed_over = [{**config._asdict(), "flaws": flaws} for config, flaws in flawed.items()]
    found = {"of": facts, "best": ranked[0]._asdict(), "timed": timed, "passed over": passed_over}
    write(path, json.dumps(found, indent=1) + "\n")
    return ranked[0]


def _flawed(configs: list[Config], read: Reader) -> dict[Config, list[str]]:
    """Those to pass over, and why: none if all have flaws, and never the first, so that none slower is chosen."""
    flaws = {config: found for config in configs if (found := read(config))}
    return {config: flaws[config] for config in configs[1:] if config in flaws} if len(flaws) < len(configs) else {}


def path_of(facts: dict[str, Any]) -> Path:
    """Where the choice for these facts lies."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    return cache_folder() / "tuned" / f"{facts['kernel']}_{digest}.json"
