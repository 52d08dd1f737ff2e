"""What a run leaves behind and shows: its folder, its environment, its metrics, and the live display."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from rfft.config.load import flatten, read_resolved
from rfft.errors import UserError
from rfft.utils.atomic_io import aside, new_file

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


def open_run(folder: Path, settings: str, may_change: Sequence[str] = ()) -> bool:
    """Make a run's folder, or open it to go on; True if it was there already.

    `settings` is the resolved config (YAML). A folder made with other settings is refused, save for
    `may_change` (keys or groups); its config.yaml then takes the new values.
    """
    file = folder / "config.yaml"
    known = file.exists()
    if known:
        old, new = flatten(read_resolved(file)), flatten(yaml.safe_load(settings))
        for key in sorted(old.keys() | new.keys()):
            before, now = old.get(key, ABSENT), new.get(key, ABSENT)
            if before != now and not any(key == free or key.startswith(f"{free}.") for free in may_change):
                raise UserError(
                    f"{folder} belongs to another config: {key} is {_show(before)} there, {_show(now)} here; "
                    "choose another run.name, or remove that folder"
                )
    elif folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - {aside(file)}):
        raise UserError(f"{folder}: exists and is no run folder (no config.yaml); choose another run.name")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, settings)
    return known


def _show(value: Any) -> str:
    return "not set" if value is ABSENT else repr(value)


def messages(quiet: bool = False) -> Console:
    """What users are told, on stderr. Brackets in paths and errors are no markup."""
    return Console(stderr=True, markup=False, quiet=quiet)


def warn(text: str) -> None:
    messages().print(f"warning: {text}", style="red", highlight=False, soft_wrap=True)


def write_atomically(path: Path, text: str) -> None:
    with new_file(path) as file:
        file.write(text.encode())


def environment() -> dict[str, Any]:
    """Versions and the shape of the machine; no names, addresses or variables of it."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "accelerators": devices,
        "cuda": torch.version.cuda,
        "packages": versions,
    }


def write_environment(folder: Path) -> None:
    write_atomically(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")


def write_skipped(folder: Path, skipped: Sequence[dict[str, str]]) -> None:
    """skipped.jsonl: the products that were left out, and why; one line on the terminal if there are any."""
    file = folder / "skipped.jsonl"
    lines = [json.dumps(product, ensure_ascii=False) + "\n" for product in skipped]
    if skipped or file.exists():
        write_atomically(file, "".join(lines))
    if skipped:
        first = skipped[0]["reason"]
        warn(f"products left out: {len(skipped)}, listed in {file.name}; first: {first}")


class MetricsFile:
    """metrics.jsonl: a JSON object a line, written at once. A resumed run drops rows it will repeat."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        # Rows of evaluations by step, on the grid of the report ("eval") and that of the validation ("val").
        self.evaluated: dict[str, dict[int, dict[str, Any]]] = {"eval": {}, "val": {}}
        if path.exists():
            rows = [row for row in read_metrics(path) if row["step"] <= resume_step]
            for row in rows:
                self._remember(row["step"], row)
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        # JSON knows no NaN: null stands for what is not a number
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._remember(step, finite)
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def _remember(self, step: int, row: dict[str, Any]) -> None:
        for group, rows in self.evaluated.items():
            if any(name.startswith(f"{group}/") for name in row):
                rows[step] = row

    def sync(self) -> None:
        """Onto the disk: what a checkpoint goes on from must not be lost with the machine's cache."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; the last one may be cut off, by a crash or while the run goes on."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


class TrainingDisplay:
    """Live line in a terminal: step, F_AC, regulariser, available rate, time left. In a log: now and then.

    with TrainingDisplay(steps, "L_CC") as display:
        display.update(step, f_ac, reg, available)
    """

    def __init__(
        self,
        steps: int,
        start: int = 0,
        console: Console | None = None,
        every_s: float = 30,
        seconds: float | None = None,
    ) -> None:
        """`start`: steps done by the run that is resumed; `every_s`: pause
        between lines in a log; `seconds`: when training ends, whatever the steps."""
        self.console = console or messages()
        self._steps, self._start, self._every_s = steps, start, every_s
        self._limit = math.inf if seconds is None else seconds
        self._began = self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scalars]}"),
            _TimeLeft(self),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=start, scalars="")
        self._done = start

    def __enter__(self) -> TrainingDisplay:
        self._began = time.monotonic()  # what came before, such as an evaluation, is no training
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: int, scalars: str) -> None:
        self._done = step
        self._progress.update(self._task, completed=step, scalars=scalars)
        due = time.monotonic() - self._printed > self._every_s or step in (self._start + 1, self._steps)
        if not self.console.is_terminal and due:
            self._printed = time.monotonic()
            self.console.print(
                f"step {step}/{self._steps}  {scalars}  {self.time_left()} left", highlight=False
            )

    def time_left(self) -> str:
        """From the mean pace since the start: steps differ too little for anything finer."""
        done = self._done - self._start
        if not done:
            return "-:--"
        spent = time.monotonic() - self._began
        seconds = round(max(0, min(spent / done * (self._steps - self._done), self._limit - spent)))
        return f"{seconds // 60}:{seconds % 60:02}"


class _TimeLeft(ProgressColumn):
    def __init__(self, display: TrainingDisplay) -> None:
        super().__init__()
        self._display = display

    def render(self, task: Task) -> Text:
        return Text(f"{self._display.time_left()} left")
