"""What is known of compiled kernels before they run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexspec.errors import FlexSpecError
from flexspec.user_line import user_caret

from .configs import Config
from .gpus import Resident
from .loops import ASSUMPTIONS, LoopReport

TENSOR_CORES = re.compile(r"\b(?:(?:[A-Z]?GMMA|[A-Z]MMA|UTC[A-Z]*MMA)(?=[._\s])|v_s?w?mfmac?_\w+|v_wmma_\w+)")
FIGURES = ("registers", "spills", "shared_bytes", "tensor_core_instructions", "occupancy")
MOST_PRODUCTS = 1.2
"""Done over needed. Where no tensor core is used, multiply-adds of the scores count too; a product done twice in a part
of the tile is a fourth more at least."""
LEAST_DEPTH = 2
"""Groups of loads under way: at least those of one more tile."""
TITLES = (
    *("kernel", "tile", "warps", "stages", "registers", "spills", "shared", "blocks"),
    *("loop", "products", "per block", "wait", "overlap", "least N", "local", "bound"),
)
"""Blocks that fit by registers and by shared memory; the rest as in `LoopReport`."""


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel.

    registers: 32-bit ones of a thread. spills: bytes of a thread that lie in memory for want of registers.
    shared_bytes: of a block. tensor_core_instructions: in the disassembly, each counted once. occupancy: resident warps
    over the most that a multiprocessor holds, from 0 (the kernel does not fit) to 1. files: what the compiler made, by
    kind: ttgir and, for NVIDIA, ptx, cubin and sass; for AMD, amdgcn and hsaco. resident: blocks that fit on a
    multiprocessor, by limit. loops: over full and over partial runs; read on NVIDIA only. warnings: ptxas' on wgmma.
    """

    name: str
    config: Config
    registers: int
    spills: int
    shared_bytes: int
    tensor_core_instructions: int
    occupancy: float
    files: Mapping[str, str | bytes] = field(repr=False, compare=False)
    resident: Resident = Resident(0, 0, 0)
    loops: tuple[LoopReport, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ptx(self) -> str:
        """NVIDIA's portable assembly; empty for an AMD target."""
        return str(self.files.get("ptx", ""))

    @property
    def tensor_cores(self) -> dict[str, int]:
        """Instructions of the tensor core in the disassembly by type: of NVIDIA, HMMA and HGMMA multiply 16-bit
        numbers, IMMA and IGMMA int8, QMMA and QGMMA fp8.
        """
        return dict(Counter(TENSOR_CORES.findall(str(self.files.get("sass", self.files.get("amdgcn", ""))))))

    @property
    def cubin(self) -> bytes:
        """The binary (AMD's hsaco for its targets)."""
        found = self.files.get("cubin", self.files.get("hsaco", b""))
        return found if isinstance(found, bytes) else b""

    def facts(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            "name": self.name,
            **self.config._asdict(),
            **{name: getattr(self, name) for name in FIGURES},
            "tensor_cores": self.tensor_cores,
            "resident": self.resident._asdict(),
            "loops": {each.part: each.facts() for each in self.loops},
            "warnings": list(self.warnings),
            "flaws": self.flaws,
        }

    @property
    def flaws(self) -> list[str]:
        """What a better tile would mend, by the full loop: nothing where it wastes nothing."""
        flaws = [] if min(self.resident) else ["no block fits"]
        for full in self.loops[:1]:
            if full.products > MOST_PRODUCTS * full.padding:
                flaws.append(f"products {full.products / full.padding:.2f}")
            if full.wait_depth is not None and full.wait_depth < LEAST_DEPTH:
                flaws.append(f"wait {full.wait_depth}")
            if full.local:
                flaws.append(f"local {full.local}")
        return flaws + [warning.partition(":")[0] for warning in self.warnings]

    def rows(self) -> list[tuple[str, ...]]:
        """Of the table of a report: one for each loop, the kernel's own figures in the first."""
        tile = f"{self.config.block_m}x{self.config.block_n}"
        blocks = f"{self.resident.registers}/{self.resident.shared}"
        counts = (self.config.warps, self.config.stages, self.registers, self.spills, self.shared_bytes)
        own = (self.name, tile, *(f"{number:,}" for number in counts), blocks)
        loops = [
            (
                each.part,
                f"{each.products:.2f}",
                f"{each.per_block:,}",
                "-" if each.wait_depth is None else str(each.wait_depth),
                "-" if each.overlap is None else f"{each.overlap:.0%}",
                "-" if each.least_n_a_shared is None else str(each.least_n_a_shared),
                str(each.local),
                f"{each.bound:.0%} {each.limit}",
            )
            for each in self.loops
        ]
        return [(*(own if not i else [""] * len(own)), *loop) for i, loop in enumerate(loops or [("-",) * 8])]


@dataclass(frozen=True)
class AotReport:
    """Kernels of one spec for one GPU. `str()` is a table; `source` is the generated code of the mask and the score."""

    label: str
    target: str
    kernels: tuple[KernelReport, ...]
    source: str = field(repr=False)

    def facts(self) -> dict[str, Any]:
        """All figures as plain data."""
        kernels = [each.facts() for each in self.kernels]
        return {"pattern": self.label, "target": self.target, "kernels": kernels, "assumptions": ASSUMPTIONS}

    def __str__(self) -> str:
        rows = [TITLES, *(row for each in self.kernels for row in each.rows())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        types = {each.name: ", ".join(f"{n} {kind}" for kind, n in each.tensor_cores.items()) for each in self.kernels}
        used = [f"{name}: {text}" for name, text in types.items() if text]
        warned = [f"{each.name}: {warning}" for each in self.kernels for warning in each.warnings]
        return "\n".join([f"{self.label} on {self.target}", *lines, *used, *warned])

    def write(self, folder: Path | str) -> Path:
        """Write report.json, the generated source and each kernel's files into a folder, which is made. FS054."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "report.json").write_text(json.dumps(self.facts(), indent=2) + "\n")
            (folder / "functions.py").write_text(self.source, "utf-8")
            for kernel in self.kernels:
                for kind, content in kernel.files.items():
                    data = content if isinstance(content, bytes) else content.encode()
                    (folder / f"{kernel.name}.{kind}").write_bytes(data)
        except OSError as error:
            message = f"{folder} cannot be written: {error.strerror}"
            raise FlexSpecError("FS054", message, where=user_caret()) from None
        return folder
