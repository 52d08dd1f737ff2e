"""What a run leaves behind and shows: its folder, its environment and its metrics; what users are told."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml
from rich.console import Console

from rfft.config.load import flatten, read_resolved
from rfft.errors import UserError
from rfft.utils.atomic_io import aside, new_file
from rfft.utils.lock import NAME as LOCK
from rfft.utils.machine import ram

PACKAGES = (
    "rfft",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "opencv-python-headless",
)
ABSENT = object()
ANOTHER_NAME = "choose another run.name, or remove that folder"
CONFIG = "config.yaml"  # the resolved settings, in a run's folder


def open_run(folder: Path, settings: str, may_change: Sequence[str] = (), advice: str = ANOTHER_NAME) -> bool:
    """Make a run's folder, or open it to go on; returns whether it was there already.

    `settings` is the resolved config (YAML). A folder made with other settings is refused, save for
    `may_change` (keys or groups); its config.yaml then takes the new values. `advice`: what to do otherwise.
    """
    known = refuse_other_runs(folder, settings, may_change, advice)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, settings)
    return known


def refuse_other_runs(
    folder: Path, settings: str, may_change: Sequence[str] = (), advice: str = ANOTHER_NAME
) -> bool:
    """Raise a UserError where open_run() would; returns whether the run is there already."""
    file = folder / CONFIG
    if not file.exists():
        if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - {aside(file), folder / LOCK}):
            raise UserError(f"{folder}: exists and is no run folder (no {CONFIG}); choose another run.name")
        return False
    old, new = flatten(read_resolved(file)), flatten(yaml.safe_load(settings))
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key, ABSENT), new.get(key, ABSENT)
        if before != now and not any(key == free or key.startswith(f"{free}.") for free in may_change):
            raise UserError(
                f"{folder} belongs to another config: {key} is {_show(before)} there, {_show(now)} here; "
                f"{advice}"
            )
    return True


def _show(value: Any) -> str:
    return "not set" if value is ABSENT else repr(value)


def messages(quiet: bool = False) -> Console:
    """Return the console on stderr for what users are told; brackets in paths are no markup there."""
    return Console(stderr=True, markup=False, quiet=quiet)


def warn(text: str) -> None:
    """Print a warning in red, on stderr."""
    messages().print(f"warning: {text}", style="red", highlight=False, soft_wrap=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with new_file(path) as file:
        file.write(text.encode())


def environment() -> dict[str, Any]:
    """Return versions and the shape of the machine, but no names, addresses or variables of it."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(ram() / 2**30, 1),
        "accelerators": devices,
        "cuda": torch.version.cuda,
        "packages": versions,
    }


def write_environment(folder: Path) -> None:
    """Write environment.json into a run's folder."""
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")


def write_skipped(folder: Path, skipped: Sequence[dict[str, str]]) -> None:
    """Write skipped.jsonl, the products that were left out and why, and warn of them in one line.

    Without any, a file of an earlier run becomes empty, and nothing is said.
    """
    file = folder / "skipped.jsonl"
    lines = [json.dumps(product, ensure_ascii=False) + "\n" for product in skipped]
    if skipped or file.exists():
        write_atomically(file, "".join(lines))
    if skipped:
        first = skipped[0]["reason"]
        warn(f"products left out: {len(skipped)}, listed in {file.name}; first: {first}")


def append_skipped(folder: Path, product: dict[str, str]) -> None:
    """Add a product that was left out later on to skipped.jsonl, and warn if it is the first one there."""
    file = folder / "skipped.jsonl"
    first = not file.exists() or not file.stat().st_size
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(product, ensure_ascii=False) + "\n")
    if first:
        warn(f"a product is left out, listed in {file.name} as will be others: {product['reason']}")


class MetricsFile:
    """The file metrics.jsonl, to which every row is written at once as a JSON object."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Open the file to go on after `resume_step`; rows beyond it are dropped, as they will come again."""
        # Rows of evaluations by step, on the grid of the report ("eval") and that of the validation ("val").
        self.evaluated: dict[str, dict[int, dict[str, Any]]] = {"eval": {}, "val": {}}
        if path.exists():
            rows = [row for row in read_metrics(path) if row["step"] <= resume_step]
            for row in rows:
                self._remember(row["step"], row)
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Add the row of a step; what is not finite becomes null, since JSON knows no NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._remember(step, finite)
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def _remember(self, step: int, row: dict[str, Any]) -> None:
        for group, rows in self.evaluated.items():
            if any(name.startswith(f"{group}/") for name in row):
                rows[step] = row

    def sync(self) -> None:
        """Bring the file onto the disk.

        What a checkpoint goes on from must not be lost with the machine's cache.
        """
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl.

    The last one may be cut off, by a crash or while the run goes on; it is left out then.
    """
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]
