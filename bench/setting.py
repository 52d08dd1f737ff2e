"""What every program in the benchmark is given: the same network, latents, batch, prompts and sampler.

Imported in both environments, so by the standard library alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

BASE = Path(__file__).parents[1] / "rfft" / "assets" / "rf-tiny"  # its U-Net alone, without the ControlNet
SIZE = 128  # pixels: latents of 32 x 32
BATCH, STEPS, LAST, GUIDANCE = 4, 40, 10, 7.5
RANK, TARGETS = 4, ["to_k", "to_q", "to_v", "to_out.0"]  # trl's own
LR = 1e-4
PROMPTS = ["a vase on a table", "a lamp in a park", "a chair on a lawn", "a clock in a lobby"]


class Step(NamedTuple):
    """One optimizer step: its gradient samples, the batched forwards it made, and makes on average."""

    samples: int
    forwards: float
    mean_forwards: float


def serve(step: Callable[[], Step]) -> None:
    """Make a step for each line on stdin, and write its seconds as JSON on stdout, until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # libraries may print what they like
    for _ in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        made = step()
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
        print(json.dumps(took | made._asdict()), file=out, flush=True)
