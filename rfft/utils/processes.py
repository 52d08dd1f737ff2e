"""Work that the processes of a job share outside of training; with one process, plain calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@contextmanager
def joined() -> Iterator[torch.device]:
    """Connect the processes that torchrun started while the block runs, and yield this one's device.

    With one process it only yields the device.
    """
    on_gpu, several = torch.cuda.is_available(), int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if several:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        if several:
            dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def spread(
    work: Callable[[int], tuple[T, Any]],
    pieces: int,
    after: Callable[[int], object] = lambda done: None,
    keep: Callable[[int, Any], object] = lambda piece, delivered: None,
) -> list[T]:
    """Return what work(i) shares for every i below `pieces`, in all processes; one of them does each piece.

    work(i) returns what it shares, which should be small, and what it delivers: that goes to the first
    process alone, by keep(i, delivered), as soon as each process has done one more piece. What comes out does
    not depend on the number of processes if work(i) depends on nothing but i. `after` is called in all
    processes together at the same times, with the number of pieces that are done.
    """
    found = {}
    for first in range(0, pieces, count()):
        own, delivered = first + rank(), None
        if own < pieces:
            found[own], delivered = work(own)
        for piece, other in enumerate(gather(delivered), start=first):
            if piece < pieces:
                keep(piece, other)
        after(min(first + count(), pieces))
    return [broadcast(found.get(i), source=i % count()) for i in range(pieces)]


def gather(value: Any) -> list[Any]:
    """Return the values of all processes in the first one, and nothing in the others."""
    if count() == 1:
        return [value]
    box: list[Any] | None = [None] * count() if rank() == 0 else None
    dist.gather_object(value, box)
    return box or []


def broadcast(value: Any, source: int = 0) -> Any:
    """Return the value that the process `source` has, in all processes."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, source)
    return box[0]
