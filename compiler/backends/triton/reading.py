"""A kernel compiled where it would be started, and read: what takes the place of `launch.run` ahead of time, and
before a configuration is timed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from flexspec.errors import FlexSpecError, choices
from flexspec.user_line import user_caret

from .configs import Config
from .functions import cache_folder, write
from .gpus import GPUS, occupancy, resident
from .loops import loops_of
from .report import TENSOR_CORES, KernelReport

WARNING = re.compile(r"\((C75\d\d)\) ([^\n]*?)(?: in the function .*)?\n")


def target_of(name: str) -> GPUTarget:
    """A GPU by its architecture's name. FS041."""
    if name not in GPUS:
        raise FlexSpecError("FS041", f"there is no target {name!r}", fix=f"choose {choices(GPUS)}", where=user_caret())
    if name.startswith("sm_"):
        return GPUTarget("cuda", int(name[3:]), GPUS[name].threads)
    return GPUTarget("hip", name, GPUS[name].threads)


def reader(target: str, head_dims: tuple[int, int], found: list[KernelReport]) -> Callable[..., None]:
    """Called as `launch.run` is: compiles the kernel for a GPU, and adds its report to those found. FS041."""
    gpu = target_of(target)

    def start(kernel: Any, grid: Any, config: Config, *args: Any, **constants: Any) -> None:
        made, log = _compiled(kernel, gpu, args, constants | config.options())
        found.append(_reported(made, log, target, config, head_dims))

    return start


def _compiled(kernel: Any, target: GPUTarget, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, str]:
    """What Triton would compile when the kernel is started with these arguments on this GPU, and what ptxas said."""
    if not isinstance(kernel, JITFunction):
        message = "in this process Triton interprets kernels, and cannot compile them"
        raise FlexSpecError("FS042", message, fix="start Python without TRITON_INTERPRET", where=user_caret())
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialised, options = bind(*args, **named)
    options, signature, constants, attributes = kernel._pack_args(backend, named, bound, specialised, options)
    source = ASTSource(kernel, signature, constants, attributes)

    def compiled(always: bool) -> tuple[Any, str]:
        log = StringIO()
        with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope(), redirect_stdout(log):
            triton.knobs.nvidia.dump_ptxas_log = True
            triton.knobs.compilation.always_compile = always
            return triton.compile(source, target=target, options=options.__dict__), log.getvalue()

    made, log = compiled(False)
    if "wgmma" not in made.asm.get("ptx", ""):
        return made, ""  # nothing of which ptxas warns
    kept = cache_folder() / "ptxas" / f"{made.hash}.txt"
    if not log:  # the binary lay in Triton's cache
        log = kept.read_text() if kept.exists() else compiled(True)[1]
    if not kept.exists():
        write(kept, log)
    return made, log


def _reported(made: Any, log: str, target: str, config: Config, head_dims: tuple[int, int]) -> KernelReport:
    gpu, files, name = GPUS[target], made.asm, made.metadata.name
    nvidia = "cubin" in files
    registers, spills, code = (_of_nvidia if nvidia else _of_amd)(files)
    columns = getattr(made.metadata, "tmem_size", 0) or 0
    config = config._replace(warps=made.metadata.num_warps)
    shared = made.metadata.shared
    return KernelReport(
        name,
        config,
        registers,
        spills,
        shared,
        len(TENSOR_CORES.findall(code)),
        occupancy(gpu, config.warps, registers, shared, columns),
        {kind: files[kind] for kind in ("ttgir", "ptx", "cubin", "amdgcn", "hsaco") if kind in files}
        | ({"sass": code} if nvidia else {}),
        resident(gpu, config.warps, registers, shared, columns),
        loops_of(name, code, config, head_dims, target, _buffers(files["ttgir"])) if nvidia else (),
        tuple(sorted({f"{code}: {text}" for code, text in WARNING.findall(log)})),
    )


def _buffers(ttgir: str) -> int:
    """For each tile that a loop loads ahead."""
    return min(map(int, re.findall(r"local_alloc : \(\) -> !ttg\.memdesc<(\d+)x\d+x\d+x[a-z]", ttgir)), default=1)


def _of_nvidia(files: Any) -> tuple[int, int, str]:
    """Registers, bytes of stack of a thread, and the disassembly, by NVIDIA's own tool, which Triton brings along."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(files["cubin"])
        binary.flush()
        usage, code = (
            subprocess.run([tool, option, binary.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "-sass")
        )
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return used["REG"], used["STACK"] + used["LOCAL"], code


def _of_amd(files: Any) -> tuple[int, int, str]:
    """Vector registers, bytes of scratch memory of a thread, and the assembly."""
    code = files["amdgcn"]
    used = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", code, re.MULTILINE)}
    return used["vgpr_count"], used["private_segment_fixed_size"], code
