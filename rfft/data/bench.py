"""`rfft data bench`: how quickly a folder of shards is read, decoded and put into batches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rfft.data.shards import load_batches, read_shards

BATCH = 64
SHUFFLE = 1000


@dataclass(frozen=True)
class Reading:
    """What was measured."""

    samples: int
    seconds: float  # by the clock
    cpu_seconds: float  # of this process; with workers, they are not in it
    bytes: int  # of the decoded pictures

    def lines(self, workers: int) -> list[str]:
        """For the terminal."""
        found = [
            f"{self.samples / self.seconds:,.0f} samples/s ({self.samples} in {self.seconds:.1f} s, "
            f"{workers} workers), {self.bytes / self.seconds / 1e6:,.0f} MB/s of pixels"
        ]
        if not workers:
            found.append(
                f"{self.samples / self.cpu_seconds:,.0f} samples per second of CPU time, so per core"
            )
        return found


def bench(folder: Path, size: int | None, workers: int, seconds: float) -> Reading:
    """Read shuffled batches, as training does, for about so many seconds, after a first batch."""
    dataset = read_shards(folder, size, SHUFFLE, repeat=True)
    batches = iter(load_batches(dataset, BATCH, workers))
    next(batches)
    samples = pixels = 0
    start, cpu = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - start) < seconds or not samples:
        batch = next(batches)
        samples += len(batch.label)
        pixels += sum(part.numel() for part in (batch.image, batch.product, batch.depth, batch.saliency))
    return Reading(samples, passed, time.process_time() - cpu, pixels)
