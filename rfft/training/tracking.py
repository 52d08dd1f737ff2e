"""W&B or TensorBoard beside metrics.jsonl, which is written whatever happens here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from rfft.config.schema import Config
from rfft.evaluation.store import SUMMARY, read_json
from rfft.evaluation.tracked import PictureTable, picture_table, summary_scalars
from rfft.training.lineage import Input, inputs, output_name
from rfft.utils.log import messages


class TrackedRun(Protocol):
    """What a tracker can be given."""

    def log(self, scalars: dict[str, float], step: int) -> None: ...

    def pictures(self, name: str, pictures: NDArray[Any], captions: Sequence[str], step: int) -> None: ...

    def table(self, name: str, table: PictureTable, step: int) -> None: ...

    def use(self, item: Input) -> None: ...

    def output(self, name: str, folder: Path, metadata: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


class Tracker:
    """A run's scalars, pictures, evaluation and lineage; one that fails is given up, and training goes on."""

    def __init__(self, kind: str, run: Path, config: dict[str, Any], main: bool = True) -> None:
        """Start the tracker of a run's folder, in the main process alone.

        `kind` is none, wandb or tensorboard; `config` the resolved settings, nested.
        """
        self._kind, self._run, self._config = kind, run, config
        self._tracked: TrackedRun | None = None
        if kind != "none" and main:
            self._attempt(self._start)

    def _start(self) -> None:
        self._tracked = open_tracked(self._kind, self._run, self._config)
        for item in inputs(self._config):
            self._tracked.use(item)

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Log scalars of a step."""
        self._send(lambda tracked: tracked.log(scalars, step))

    def pictures(self, name: str, pictures: NDArray[Any], columns: dict[str, list[Any]], step: int) -> None:
        """Log pictures [N,H,W,3], uint8; what the columns (N values each) say of one is its caption."""
        captions = [", ".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
        self._send(lambda tracked: tracked.pictures(name, pictures, captions, step))

    def evaluation(self, summary: dict[str, Any], step: int) -> None:
        """Log a run's final evaluation: its summary.json, and its pictures, which lie in its folder."""

        def send(tracked: TrackedRun) -> None:
            tracked.log(summary_scalars(summary), step)
            tracked.table("evaluation", picture_table(self._run), step)

        self._send(send)

    def artifact(self, folder: Path, metadata: dict[str, Any], kind: str = "lora") -> None:
        """Hand over a folder of weights, named after run and kind."""
        name = output_name(self._config["run"]["name"], kind)
        self._send(lambda tracked: tracked.output(name, folder, metadata))

    def close(self) -> None:
        """Finish; may be called twice."""
        self._send(lambda tracked: tracked.finish())
        self._tracked = None

    def _send(self, action: Callable[[TrackedRun], object]) -> None:
        tracked = self._tracked
        if tracked is not None:
            self._attempt(lambda: action(tracked))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever the service throws: a run must not die of its log
            failed, self._tracked = self._tracked, None
            if failed is not None:
                with suppress(Exception):
                    failed.finish()
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            told = f"warning: {self._kind} failed ({reason}); going on without it, metrics.jsonl has it all"
            messages().print(told, soft_wrap=True)


def track_evaluation(config: Config, folder: Path) -> dict[str, Any]:
    """Log what an evaluation has left in a folder to the folder's own run of the tracker; return its summary.

    A trained run goes on in the one that it has. Of several processes the first one logs.
    """
    summary = read_json(folder / SUMMARY)
    tracker = Tracker(config.tracker.kind, folder, asdict(config), os.environ.get("RANK", "0") == "0")
    tracker.evaluation(summary, summary.get("checkpoint") or 0)
    tracker.close()
    return summary


def open_tracked(kind: str, run: Path, config: dict[str, Any]) -> TrackedRun:
    """Start W&B or TensorBoard; imported only here, as either may be missing."""
    if kind == "wandb":
        from rfft.training.wandb_run import WandbRun

        return WandbRun(run, config)
    from rfft.training.tensorboard_run import TensorBoardRun

    return TensorBoardRun(run, config)
