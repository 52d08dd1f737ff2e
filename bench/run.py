"""RFFT beside others, and beside the machine: make bench, or python -m bench.run --help.

Each program is a process that makes one optimizer step when it is told to; rounds go through all of them, so
that whatever else the machine does hits all alike; on a busy one, look at the CPU's seconds. Seconds are per
gradient sample, and scaled to the mean number of forwards where a step draws how many it makes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.setting import BATCH, SIZE, STEPS

ROOT = Path(__file__).parents[1]
HALF = ["trainer.mixed_precision=bf16"]
COPY = [*HALF, "rollout.precision=bf16", "rollout.compile=always"]
FOUR, CACHED = ["rollout.grad_steps=4"], ["rollout.cache=3"]
OURS = {
    "RFFT, autocast": HALF,
    "RFFT, copy compiled": COPY,
    "RFFT, grad_steps=4": [*COPY, *FOUR],
    "RFFT, cached": [*COPY, *CACHED],
    "RFFT, grad_steps=4, cached": [*COPY, *FOUR, *CACHED],
}
PEERS = {
    "trl 0.23.1 AlignProp, fp32": ["trl", "no"],
    "trl 0.23.1 AlignProp, bf16": ["trl", "bf16"],
    "ReFL, bf16": ["refl", "bf16"],
}


class Program:
    """A process that makes steps when it is told to."""

    def __init__(self, python: str, module: str, arguments: list[str]) -> None:
        self.name = " ".join([module, *arguments])
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        command = [python, "-m", module, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def step(self) -> tuple[float, float]:
        """Make one optimizer step; returns the seconds of a gradient sample, on the clock and of the CPU."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: its error is above")
        made = json.loads(line)
        share = made["mean_forwards"] / made["forwards"] / made["samples"]
        return made["seconds"] * share, made["cpu_seconds"] * share

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def rate(call: Callable[[], Tensor], flops: float, seconds: float = 1.5) -> float:
    """Return the best GFLOP/s of a call over some time."""
    call()
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, flops / (time.perf_counter() - began))
    return best / 1e9


def machine_rates() -> dict[str, float]:
    """Return GFLOP/s of matrix products (2048) and 3 x 3 convolutions (128 channels, 32 x 32)."""
    found, device = {}, "cuda" if torch.cuda.is_available() else "cpu"
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = torch.randn(2, 2048, 2048, device=device).to(dtype)
        found[f"matmul {name}"] = rate(lambda a=a, b=b: a @ b, 2 * 2048**3)  # type: ignore[misc]
        x = torch.randn(8, 128, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        flops = 2 * 8 * 32 * 32 * 128 * 128 * 9
        found[f"conv {name}"] = rate(lambda x=x, w=w: F.conv2d(x, w, padding=1), flops)  # type: ignore[misc]
    return found


def interleaved(programs: dict[str, Program], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return what a gradient sample took in each round, after a round that warms up and compiles."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            took = program.step()
            print(
                f"round {number}: {name}: {took[0]:.2f} s, CPU {took[1]:.2f} s", file=sys.stderr, flush=True
            )
            found[name] += [took] * bool(number)
    return found


def rows(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return the figures of each program: least and median, and how often they go into the fastest trl's."""
    found: dict[str, Any] = {}
    for number, clock in enumerate(("clock", "cpu")):
        trl = min(min(t)[number] for name, t in times.items() if name.startswith("trl"))
        for name, took in times.items():
            seconds = [pair[number] for pair in took]
            figures = {"seconds": seconds, "least": min(seconds), "median": statistics.median(seconds)}
            found.setdefault(name, {})[clock] = figures | {"times": trl / min(seconds)}
    return found


def report(times: dict[str, list[tuple[float, float]]], rates: dict[str, float]) -> dict[str, Any]:
    """Return what the JSON holds."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "machine": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "setting": f"rf-tiny's U-Net alone, {SIZE} px, batch {BATCH}, {STEPS} steps, LoRA rank 4",
        "GFLOP/s": {name: round(value, 1) for name, value in rates.items()},
        "seconds of a gradient sample": rows(times),
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [f"{found['setting']}; {found['machine']}; {found['date']}"]
    lines += ["GFLOP/s: " + ", ".join(f"{name} {value:,.0f}" for name, value in found["GFLOP/s"].items()), ""]
    lines += [
        "| program | s per gradient sample, least | median | times trl's | CPU s, least | times trl's |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for name, row in found["seconds of a gradient sample"].items():
        clock, cpu = row["clock"], row["cpu"]
        shown = f"{clock['least']:.2f} | {clock['median']:.2f} | {clock['times']:.2f}"
        lines.append(f"| {name} | {shown} | {cpu['least']:.2f} | {cpu['times']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", default="bench/.venv/bin/python", help="Python of bench/requirements.txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench/results.json"))
    options = parser.parse_args()
    rates = machine_rates()
    programs = {name: Program(options.peers, "bench.peers", words) for name, words in PEERS.items()}
    programs |= {name: Program(sys.executable, "bench.ours", words) for name, words in OURS.items()}
    try:
        found = report(interleaved(programs, options.rounds), rates)
    finally:
        for program in programs.values():
            program.close()
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
