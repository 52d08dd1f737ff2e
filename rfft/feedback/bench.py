"""`rfft data bench`: how quickly RFNet's training would read and decode a folder of shards."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from rfft.errors import UserError
from rfft.feedback.dataset import PICTURES, Reading
from rfft.feedback.shard_format import read_complete
from rfft.feedback.shard_stream import ShardPictures

BATCH = 64


@dataclass(frozen=True)
class Measured:
    """What a measurement of reading found."""

    samples: int
    seconds: float  # by the clock
    cpu_seconds: float  # of this process; with workers, they are not in it
    bytes: int  # of the decoded pictures

    def lines(self, workers: int) -> list[str]:
        """Return it as lines for the terminal; `workers` is how many processes were reading."""
        found = [
            f"{self.samples / self.seconds:,.0f} samples/s ({self.samples} in {self.seconds:.1f} s, "
            f"{workers} workers), {self.bytes / self.seconds / 1e6:,.0f} MB/s of pixels"
        ]
        if not workers:
            found.append(
                f"{self.samples / self.cpu_seconds:,.0f} samples per second of CPU time, so per core"
            )
        return found


def bench(folder: Path, size: int | None, workers: int, seconds: float) -> Measured:
    """Measure how quickly a folder of shards is read as RFNet's training reads it.

    Reads for about so many seconds after a first batch. `size` is the side of the squares in pixels; None
    takes that of the stored ones, and raises UserError where they are no squares.
    """
    stored = read_complete(folder).settings.get("size")
    if (side := size or stored) is None:
        raise UserError(f"{folder}: its pictures were not made squares: give --size")
    batches = iter(
        ShardPictures([str(folder)], side).endless(Reading(BATCH, workers), 0, seed=0, mirror=True)
    )
    next(batches)
    samples = pixels = 0
    start, cpu = time.perf_counter(), time.process_time()
    while (passed := time.perf_counter() - start) < seconds or not samples:
        batch = next(batches)
        samples += len(batch["label"])
        pixels += sum(batch[kind].numel() for kind in PICTURES)
    return Measured(samples, passed, time.process_time() - cpu, pixels)
