"""What the cost model knows of a device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flexspec.errors import FlexSpecError, choices
from flexspec.user_line import user_caret


@dataclass(frozen=True)
class Hardware:
    """A device as a roofline sees it.

    flops: dense bf16 tensor-core FLOP/s (no structured sparsity). bandwidth: device memory, bytes/s. sms: units that
    run one tile of queries at a time each.

    >>> Hardware("mine", flops=100e12, bandwidth=1e12, sms=64).name
    'mine'
    """

    name: str
    flops: float
    bandwidth: float
    sms: int


# NVIDIA's datasheets of the SXM boards; where they give FLOP/s with structured sparsity, half of that. They do not give
# the SMs of the B200: 148 is what its driver reports.
HARDWARE: dict[str, Hardware] = {
    "a100": Hardware("a100", 312e12, 2.039e12, 108),  # A100 80 GB
    "h100": Hardware("h100", 989e12, 3.35e12, 132),
    "h200": Hardware("h200", 989e12, 4.8e12, 132),
    "b200": Hardware("b200", 2250e12, 8e12, 148),  # HGX B200, one GPU
    "generic": Hardware("generic", 300e12, 2e12, 100),  # round numbers, no device
}


def hardware_of(wanted: str | Hardware) -> Hardware:
    """A device by name, or the one that is given. FS041."""
    if isinstance(wanted, Hardware):
        return wanted
    hardware = HARDWARE.get(wanted.lower()) if isinstance(wanted, str) else None
    if hardware is None:
        fix = f"choose {choices(HARDWARE)}, or give a Hardware of your own"
        raise FlexSpecError("FS041", f"hardware is {wanted!r}", fix=fix, where=user_caret())
    return hardware


def hardware_at(device: torch.device) -> Hardware:
    """The table's entry for a device that is there, by its name; else generic."""
    name = torch.cuda.get_device_name(device).lower() if device.type == "cuda" else ""
    return next((entry for key, entry in HARDWARE.items() if key in name), HARDWARE["generic"])
