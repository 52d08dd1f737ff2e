"""The machine on which the program runs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUP_LIMITS = (  # of a container's memory, in versions 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

# Dense bf16 TFLOP/s of tensor cores, from NVIDIA's data sheets; the first name found in the card's counts.
PEAKS = {
    "H200": 989.5,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.5,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def arithmetic(flops_per_second: float, device: torch.device) -> dict[str, float]:
    """Return a process's TFLOP/s, and their share of the card's bf16 peak where it is known; {} for none."""
    if not flops_per_second:
        return {}
    found = {"denoiser_tflops": flops_per_second / 1e12}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((peak for card, peak in PEAKS.items() if card in name), None)
    return found if peak is None else found | {"peak_share": found["denoiser_tflops"] / peak}


def process_memory() -> tuple[str, int]:
    """Return what a process trains in, for people, and its size in bytes: the GPU's memory, or the RAM."""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"memory of {gpu.name}", gpu.total_memory
    return "RAM", ram()


def ram() -> int:
    """Return the bytes of memory that this machine, or the container, lets its programs have."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CGROUP_LIMITS:
        try:
            sizes.append(int(file.read_text()))
        except (OSError, ValueError):  # another version, or "max": no limit
            continue
    return min(sizes)
