"""Reports of compiled kernels, kept on disk and read back without Triton.

A report is a file named by all that it depends on (`facts_of`): what changes any of it compiles anew. Nothing is kept
or read where that cannot be told: where something is asked of Triton's compilers by the environment or `triton.knobs`,
and where a source file is younger than the process, which may have read the older one. Of what a process changes in
memory, the tables of tiles count.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from flexspec import errors

from ..base import Call
from .configs import TABLES, Config
from .functions import cache_folder, write
from .gpus import Resident
from .loops import LoopReport
from .report import AotReport, KernelReport

ASKS = ("TRITON_", "MLIR_", "LLVM_", "AMDGCN_", "NVPTX_", "PTXAS_", "DISABLE_", "ALLOW_", "USE_IR_LOC")
"""How the variables' names begin that Triton's compilers read (`triton.knobs`, `get_cache_invalidating_env_vars`)."""
PLACES = ("TRITON_CACHE_DIR", "TRITON_HOME")
"""Those that only say where it keeps files."""
OWN = {Path(str(errors.__file__)).parent, Path(__file__).parents[2]}
"""The language and the compiler."""


def kept_or_made(call: Call, target: str, backward: bool, make: Callable[[], AotReport]) -> AotReport:
    """The report of these kernels: as it was kept, else made, and kept."""
    if asked() or changed():
        return make()
    facts = facts_of(call, target, backward)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    path = cache_folder() / "reports" / f"{target}_{digest}.json"
    report = _read(path, facts)
    if report is None:
        report = make()
        if not changed():
            write(path, json.dumps({"of": facts, "report": _packed(report)}))
    return report


def facts_of(call: Call, target: str, backward: bool) -> dict[str, Any]:
    """All that a report depends on. Tensors and sources by their content, Triton by its files' state."""
    lowered, weight = call.lowered, call.lowered.weight
    return {
        "target": target,
        "backward": backward,
        "label": lowered.attention.label,
        "mask": str(lowered.mask),
        "score": str(call.score),
        "scale": repr(lowered.attention.scale),
        "weight": None if weight is None else [weight.kind, str(weight.expr)],
        "grid": repr(lowered.grid),
        "map": type(lowered.block_map).__name__,
        "values": _values(lowered.values),
        "call's values": _values({**call.bound.all_numbers(), **call.bound.tensors}),
        "q, k, v": [[str(x.dtype), list(x.shape), list(x.stride())] for x in (call.q, call.k, call.v)],
        "options": [call.autotune, call.precision, call.skip, call.deterministic, call.return_lse],
        "trained": list(call.trained),
        "default dtype": str(torch.get_default_dtype()),
        "tiles": repr(TABLES),
        "sources": _digest(each.read_bytes() for each in _sources()),
        "triton": _digest(repr(each).encode() for each in _states()),
        "torch": [torch.__version__, torch.version.git_version],
        "python": sys.version,
    }


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in values.items()}


def _value(value: Any) -> list[Any]:
    if not isinstance(value, torch.Tensor):
        return [type(value).__name__, repr(value)]
    plain = value.detach().cpu().resolve_neg().contiguous().reshape(-1)
    return [str(value.dtype), list(value.shape), _digest([plain.view(torch.uint8).numpy().tobytes()])]


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def _sources() -> list[Path]:
    return sorted({path for folder in OWN for path in folder.rglob("*.py")})


def _states() -> Iterator[tuple[str, int, int, int]]:
    """Path, bytes and times of change of each file of Triton, in nanoseconds."""
    spec = find_spec("triton")
    for place in (spec and spec.submodule_search_locations) or ():
        for folder, folders, names in os.walk(place, followlinks=True):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for path in filter(os.path.exists, sorted(os.path.join(folder, name) for name in names)):
                state = os.stat(path)
                yield path, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def asked() -> bool:
    """Is anything asked of Triton's compilers, by the environment or by its knobs?"""
    knobs = sys.modules.get("triton.knobs")
    groups = [each for each in vars(knobs).values() if isinstance(each, knobs.base_knobs)] if knobs else []
    named = (name for name in os.environ if name.startswith(ASKS) and name not in PLACES)
    return any(map(os.environ.get, named)) or any(map(vars, groups))


def _began() -> float:
    """When this process began, in nanoseconds since 1970 (Linux `proc(5)`); 0 where that cannot be told."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return (time.time() - age) * 1e9


BEGAN = _began()


def changed() -> bool:
    """Is a source file, of ours or of Triton's, younger than this process?"""
    times = [path.stat().st_ctime_ns for path in _sources()] + [changed for *_, changed in _states()]
    return max(times, default=time.time_ns()) > BEGAN


def _packed(report: AotReport) -> dict[str, Any]:
    """As JSON takes it: files compressed, each with whether it is text."""
    plain = asdict(report)
    for kernel in plain["kernels"]:
        for kind, content in kernel["files"].items():
            data = content if isinstance(content, bytes) else content.encode()
            kernel["files"][kind] = [isinstance(content, str), b64encode(zlib.compress(data, 1)).decode()]
    return plain


def _read(path: Path, facts: dict[str, Any]) -> AotReport | None:
    """Nothing where no file lies, or one that cannot be read."""
    try:
        found = json.loads(path.read_text())
        if found["of"] != facts:
            return None
        return AotReport(**found["report"] | {"kernels": tuple(map(_kernel, found["report"]["kernels"]))})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return None


def _kernel(plain: dict[str, Any]) -> KernelReport:
    files = {kind: (text, zlib.decompress(b64decode(data))) for kind, (text, data) in plain["files"].items()}
    return KernelReport(
        **plain
        | {
            "config": Config(*plain["config"]),
            "resident": Resident(*plain["resident"]),
            "loops": tuple(LoopReport(**each) for each in plain["loops"]),
            "warnings": tuple(plain["warnings"]),
            "files": {kind: data.decode() if text else data for kind, (text, data) in files.items()},
        }
    )
