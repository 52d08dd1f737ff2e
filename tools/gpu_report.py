"""`make gpu`: what RFFT does on this machine's GPUs, tested and measured, as docs/gpu/CARD.md.

python tools/gpu_report.py [--device cpu] [--quick] [--minutes 10] [--out docs/gpu]

CUDA tests; the demo, on all cards too where there are several; one optimizer step of SD 1.5 at 512 px and
SDXL at 1024 px with random weights in every mode and precision; `make bench`, where there is one. What is
left undone when the minutes are over is said in the page. --device cpu --quick is for its own test: small
networks and one precision, the same way.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
BASES = {"sd15": "SD 1.5, 512 px", "sdxl": "SDXL, 1024 px"}
MODES = ("denoiser_lora", "controlnet_lora", "controlnet")
PRECISIONS = ("bf16", "mixed", "tf32", "fp16", "fp32")  # most telling first, as time may run out
# Dense bf16 peaks in TFLOP/s, of the makers' data sheets, by what a card's name has in it.
PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}
PHASES = ("denoiser without", "denoiser with gradient", "decoder", "backward passes", "rest")
BENCH_NEEDS = 120  # seconds
GIB = 2**30


@dataclass
class Report:
    """What has been found so far, and how much time is left."""

    device: str
    quick: bool
    ends: float
    left_out: list[str] = field(default_factory=list)

    def seconds_left(self) -> float:
        """Return the seconds until the page has to be written."""
        return self.ends - time.monotonic()

    def run(self, name: str, command: Sequence[str], folder: Path = ROOT) -> tuple[int, str, float] | None:
        """Run a command; returns exit code, output and seconds, or None where time is over."""
        if self.seconds_left() <= 0:
            self.left_out.append(name)
            return None
        print(name, flush=True)
        began = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=self.seconds_left(), check=False
            )
        except subprocess.TimeoutExpired:
            self.left_out.append(name)
            return None
        return done.returncode, done.stdout + done.stderr, time.monotonic() - began


def machine(device: str) -> tuple[str, int]:
    """Return the card's name and how many of them there are; without GPUs the CPU and 1."""
    if device == "cpu":
        return "CPU", 1
    return torch.cuda.get_device_name(0), torch.cuda.device_count()


def product_rate(device: str, side: int) -> float:
    """Return the TFLOP/s of a bf16 matrix product of this side, the best of ten."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12


def known_peak(card: str) -> float | None:
    """Return the card's bf16 peak in TFLOP/s, if it is one of PEAKS."""
    return next((peak for name, peak in PEAKS.items() if name in card), None)


def tests_and_demo(report: Report, cards: int) -> Iterator[str]:
    """Yield a line for the CUDA tests and for the demo's config."""
    if report.device == "cuda":
        ran = report.run("CUDA tests", [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/cuda"])
        if ran is not None:
            said = next(
                (line for line in reversed(ran[1].splitlines()) if "passed" in line or "failed" in line), ""
            )
            yield f"| CUDA tests | exit code {ran[0]}: {said} | {ran[2]:.0f} |"
    with TemporaryDirectory() as folder:
        config, out = str(ROOT / "configs/tiny.yaml"), [f"run.out={folder}", "tracker.kind=none"]
        if report.quick:
            out += ["trainer.steps=1", "trainer.accumulation=1", "data.count=4", "evaluate.enabled=false"]
            out += ["trainer.sample_every=0", "rollout.steps=4", "rollout.last=2", "rollout.grad_steps=1"]
        train = ["-m", "rfft", "train", config, *out]
        yield from _told(
            report.run("rfft train tiny", [sys.executable, *train]), "`rfft train configs/tiny.yaml`"
        )
        if cards > 1:
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={cards}",
            ]
            ran = report.run("all cards", [*command, *train, "run.name=all", "trainer.steps=4"])
            yield from _told(ran, f"the same on {cards} cards, 4 steps")


def _told(ran: tuple[int, str, float] | None, what: str) -> Iterator[str]:
    if ran is not None:
        last = "" if ran[0] == 0 else f": {next(iter(reversed(ran[1].splitlines())), '')[:200]}"
        yield f"| {what} | exit code {ran[0]}{last} | {ran[2]:.0f} |"


def steps(report: Report, peak: float) -> Iterator[str]:
    """Yield a line for one optimizer step of each base, mode and precision."""
    for precision, base, mode in product(("mixed",) if report.quick else PRECISIONS, BASES, MODES):
        name = f"{base} {mode} {precision}"
        command = [sys.executable, "tools/gpu_step.py", base, mode, precision, report.device]
        ran = report.run(name, command + ["--quick"] * report.quick)
        if ran is None:
            continue
        lines = [line for line in ran[1].splitlines() if line.startswith("{")]
        found = json.loads(lines[-1]) if lines else {"failed": f"exit code {ran[0]}"}
        yield f"| {BASES[base]} | {mode} | {precision} | {_measured(found, peak)} |"


def _measured(found: dict[str, Any], peak: float) -> str:
    if "failed" in found:
        return f"{found['failed'][:120]} |" + " |" * (len(PHASES) + 4)
    rate = found["tflop"] / found["seconds"]
    cells = [f"{found['seconds']:.2f}", *(f"{found['phases'].get(name, 0.0):.2f}" for name in PHASES)]
    cells += [f"{found['tflop']:,.1f}", f"{rate:,.1f}", f"{rate / peak:.0%}"]
    return " | ".join([*cells, f"{found['peak'] / GIB:.2f}", f"{found['foretold'] / GIB:.2f}"])


def bench(report: Report) -> str:
    """Return what `make bench` prints at its end, if there is such a thing and time for it."""
    if report.quick or not re.search(r"^bench:", (ROOT / "Makefile").read_text(), re.MULTILINE):
        return ""
    if report.seconds_left() < BENCH_NEEDS:
        report.left_out.append("make bench")
        return ""
    ran = report.run("make bench", ["make", "bench"])
    return "" if ran is None else "\n".join(ran[1].splitlines()[-40:])


def page(report: Report, card: str, cards: int) -> str:
    """Run everything, and return the page."""
    own, named = product_rate(report.device, 512 if report.quick else 8192), known_peak(card)
    peak = named or own
    demo, table = list(tests_and_demo(report, cards)), list(steps(report, peak))
    benched = bench(report)
    head = ["base", "trained", "precision", "s a step", *PHASES, "TFLOP", "TFLOP/s", "of peak"]
    head += ["peak GiB", "`rfft check`'s GiB"]
    kind = "the data sheet's" if named else "the product measured here"
    parts = [
        f"# {card}",
        f"`make gpu`, {date.today()}, {cards} x {card}, torch {torch.__version__}"
        + (" (--quick: small networks, no figures of a GPU)" if report.quick else "")
        + f". A bf16 matrix product runs at {own:,.1f} TFLOP/s; peak here is {peak:,.1f} ({kind}).",
        "\n".join(["| what | result | seconds |", "| --- | --- | --- |", *demo]),
        "One optimizer step of one micro-batch, random weights, the shipped LoRA config; `mixed`: rollout "
        "in bf16, objective in fp32, as shipped; `bf16`: frozen weights too. Seconds of the second step.",
        "\n".join([f"| {' | '.join(head)} |", "| --- " * len(head) + "|", *table]),
    ]
    if benched:
        parts.append(f"`make bench`:\n\n```\n{benched}\n```")
    if report.left_out:
        parts.append(f"Left out, as the time was over: {', '.join(report.left_out)}.")
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Write the page; exit code 2 where there is no such device."""
    parser = argparse.ArgumentParser(description="What RFFT does on this machine's GPUs.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, one precision")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/gpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(
            2, "make gpu: torch finds no CUDA device; --device cpu --quick goes the way without one\n"
        )
    card, cards = machine(options.device)
    report = Report(options.device, options.quick, time.monotonic() + 60 * options.minutes)
    text = page(report, card, cards)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{re.sub(r'[^A-Za-z0-9]+', '-', card).strip('-')}.md"
    file.write_text(text, encoding="utf-8")
    print(f"written: {file}")


if __name__ == "__main__":
    main(sys.argv[1:])
