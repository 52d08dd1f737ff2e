"""What every training records: scalars in metrics.jsonl and in the tracker, and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rfft.errors import Interrupted
from rfft.training.loop import Callback
from rfft.training.step import Learner
from rfft.training.tracking import Tracker
from rfft.utils.background import Background
from rfft.utils.checkpoint import Checkpoints, Snapshot, copied
from rfft.utils.log import MetricsFile, messages


class Recorder(Callback):
    """Scalars of a run, in RUN/metrics.jsonl and in its tracker; the first process writes, the others do
    nothing.

    with Recorder(run, learner, tracker) as recorder:
        recorder.write(step, {"eval/ap": 0.5})
    """

    def __init__(self, run: Path, learner: Learner[Any], tracker: Tracker) -> None:
        """Open the file, without rows of steps that the learner has not made."""
        self.learner, self.main, self.tracker = learner, learner.accelerator.is_main_process, tracker
        self.console = messages(quiet=not self.main)
        self.file = MetricsFile(run / "metrics.jsonl", learner.counters.step) if self.main else None

    @property
    def evaluated(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Return the rows of evaluations, by grid ("eval" or "val") and step; in the first process alone."""
        return {} if self.file is None else self.file.evaluated

    def after_step(self, scalars: Mapping[str, float]) -> None:
        """Write the step's scalars, and say on the terminal if it was skipped."""
        step = self.learner.counters.step
        self.write(step, scalars)
        if self.learner.counters.skipped_in_a_row:
            self.console.print(f"step {step} is skipped: its loss or gradient is not finite", style="red")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars of this step."""
        if self.file is not None:
            self.file.write(step, dict(scalars))
            self.tracker.log(dict(scalars), step)

    def sync(self) -> None:
        """Bring all rows onto the disk."""
        if self.file is not None:
            self.file.sync()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; the tracker only where the run ended well, so that it can tell a crash."""
        if self.file is not None:
            self.file.close()
        if error is None or isinstance(error, Interrupted):
            self.tracker.close()


class CheckpointSaver(Callback):
    """Checkpoints every so many steps and at the end; after a signal, what has been done until then.

    They are written in the background, from a copy in the CPU's memory, while the next steps go on; the next
    one, and the end, wait for it. A run that is killed meanwhile has the one before.
    """

    def __init__(
        self, learner: Learner[Any], checkpoints: Checkpoints, every: int, recorder: Recorder | None = None
    ) -> None:
        """`recorder`: its rows are brought onto the disk first, as a resumed run goes on from both."""
        self.learner, self.checkpoints, self.every, self.recorder = learner, checkpoints, every, recorder
        self.background = Background("checkpoint")

    def after_step(self, scalars: Mapping[str, float]) -> None:
        if self.learner.due(self.every) or self.learner.finished():
            self.save()

    def on_stop(self) -> None:
        self.save()
        self.background.wait()

    def on_end(self) -> None:
        self.save()
        self.background.wait()

    def close(self) -> None:
        self.background.close()

    def save(self) -> None:
        """Begin to save what has been done, if it is not yet; raises what went wrong with the one before."""
        step, weights = self.learner.counters.step, self.learner.weights()
        self.background.wait()
        if self.learner.accelerator.is_main_process and step and not self.checkpoints.has(step):
            if self.recorder is not None:
                self.recorder.sync()
            kept = {name: copied(dict(tensors)) for name, tensors in weights.items()}
            objects = {name: Snapshot(item) for name, item in self.learner.objects().items()}
            self.background.start(lambda: self.checkpoints.save(step, kept, objects))

    def save_best(self, score: float) -> None:
        """Keep the state as the best one so far, if no earlier one has this score."""
        weights = self.learner.weights()
        self.background.wait()
        if self.learner.accelerator.is_main_process:
            self.checkpoints.save_best(score, self.learner.counters.step, weights, self.learner.objects())
