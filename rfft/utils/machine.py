"""The machine on which the program runs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUP_LIMITS = (  # of a container's memory, in versions 2 and 1
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


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
