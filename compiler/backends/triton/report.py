"""What is known of compiled kernels before they run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexspec.errors import FlexSpecError
from flexspec.user_line import user_caret

from .configs import Config

FIGURES = ("registers", "spills", "shared_bytes", "tensor_core_instructions", "occupancy")


@dataclass(frozen=True)
class KernelReport:
    """One compiled kernel.

    registers: 32-bit ones of a thread. spills: bytes of a thread that lie in memory for want of registers.
    shared_bytes: of a block. tensor_core_instructions: in the disassembly, each counted once. occupancy: resident warps
    over the most that a multiprocessor holds, from 0 (the kernel does not fit) to 1. files: what the compiler made, by
    kind: ttgir and, for NVIDIA, ptx, cubin and sass; for AMD, amdgcn and hsaco.
    """

    name: str
    config: Config
    registers: int
    spills: int
    shared_bytes: int
    tensor_core_instructions: int
    occupancy: float
    files: Mapping[str, str | bytes] = field(repr=False, compare=False)

    @property
    def ptx(self) -> str:
        """NVIDIA's portable assembly; empty for an AMD target."""
        return str(self.files.get("ptx", ""))

    @property
    def cubin(self) -> bytes:
        """The binary (AMD's hsaco for its targets)."""
        found = self.files.get("cubin", self.files.get("hsaco", b""))
        return found if isinstance(found, bytes) else b""

    def facts(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {"name": self.name, **self.config._asdict(), **{name: getattr(self, name) for name in FIGURES}}


@dataclass(frozen=True)
class AotReport:
    """Kernels of one spec for one GPU. `str()` is a table; `source` is the generated code of the mask and the score."""

    label: str
    target: str
    kernels: tuple[KernelReport, ...]
    source: str = field(repr=False)

    def facts(self) -> dict[str, Any]:
        """All figures as plain data."""
        return {"pattern": self.label, "target": self.target, "kernels": [each.facts() for each in self.kernels]}

    def __str__(self) -> str:
        titles = ("kernel", "tile", "warps", "stages", "registers", "spills", "shared", "tensor cores", "occupancy")
        rows: list[tuple[str, ...]] = [titles]
        for each in self.kernels:
            tile = f"{each.config.block_m}x{each.config.block_n}"
            figures = (each.registers, each.spills, each.shared_bytes, each.tensor_core_instructions)
            counts = (f"{number:,}" for number in (each.config.warps, each.config.stages, *figures))
            rows.append((each.name, tile, *counts, f"{each.occupancy:.0%}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.label} on {self.target}", *lines])

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
