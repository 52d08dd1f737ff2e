"""Evaluations of a run: before and after training on the grid of the report, on the way on another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import Progress

from rfft.evaluation import store
from rfft.evaluation.evaluator import Evaluation, Evaluator, show
from rfft.evaluation.grid import describe_grid
from rfft.evaluation.guard import chooses
from rfft.evaluation.validation import Validation
from rfft.training.learner import RFFTLearner
from rfft.training.loop import Callback
from rfft.training.recorder import CheckpointSaver, Recorder
from rfft.utils.checkpoint import score_of, step_of
from rfft.utils.processes import broadcast


class Evaluations(Callback):
    """The base model before training and the tuned one at the end, on the grid of the report."""

    def __init__(
        self,
        run: Path,
        learner: RFFTLearner,
        evaluator: Evaluator,
        recorder: Recorder,
        saver: CheckpointSaver,
    ) -> None:
        """`saver`: is asked for the best state where a guardrail has stopped the run."""
        self.run, self.learner, self.evaluator = run, learner, evaluator
        self.recorder, self.saver = recorder, saver
        self.main = learner.accelerator.is_main_process

    def on_start(self) -> None:
        """Evaluate the base model, if that has not been done on this grid."""
        if broadcast(self.main and store.recorded(self.run, "base") is None):
            self._record("base")
        self._write("base", 0)

    def on_end(self) -> None:
        """Evaluate what will be exported, the last state or the best, unless an earlier end did."""
        step, best = self.learner.counters.step, None
        if self.learner.stopped and (best := broadcast(self.saver.checkpoints.best())):
            self.learner.load_weights(best)
        summary = store.read_json(self.run / store.SUMMARY) if self.main else {}
        if broadcast(summary.get("steps") == step and "tuned" in summary):
            return
        checkpoint = step if best is None else step_of(best)
        self._record("tuned", checkpoint)
        self.on_start()  # again, if the grid is another one than when the run was begun
        self._write("tuned", step)
        if self.main:
            store.finish(self.run, run_counters(self.learner) | self._best(), checkpoint)

    def _best(self) -> dict[str, Any]:
        """Return the best checkpoint on the validation grid, as the summary has it."""
        best = self.saver.checkpoints.best()
        if best is None:
            return {}
        by = chooses(self.learner.config.evaluate)
        return {store.BEST: {"step": step_of(best), "score": score_of(best), "chosen_by": by}}

    def _record(self, state: str, checkpoint: int | None = None) -> None:
        found = evaluate(self.learner, self.evaluator, "test", state, self.recorder, self.run)
        if self.main:
            store.record(self.run, state, describe_grid(self.evaluator), found, checkpoint)

    def _write(self, state: str, step: int) -> None:
        if self.main:
            write_evaluation(self.recorder, "eval", step, store.recorded(self.run, state))


class Validations(Callback):
    """The model on the way, on the validation grid: the best state is kept, a guardrail may stop the run.

    They come after their step's checkpoint, as they may take long; a resumed run makes up for a missing one.
    """

    def __init__(
        self,
        run: Path,
        learner: RFFTLearner,
        validation: Validation,
        recorder: Recorder,
        saver: CheckpointSaver,
    ) -> None:
        """`saver`: keeps the best state."""
        self.run, self.learner, self.validation = run, learner, validation
        self.recorder, self.saver = recorder, saver
        self.main = learner.accelerator.is_main_process

    def on_start(self) -> None:
        """Measure the base model, once in a run; then this step, if a signal has kept the run from it."""
        if broadcast(self.main and self.validation.base(self.run) is None):
            found = evaluate(self.learner, self.validation.evaluator, "validation", "base", self.recorder)
            if self.main:
                self.validation.record_base(self.run, found)
        if self.main:
            write_evaluation(self.recorder, "val", 0, self.validation.base(self.run))
        self.after_step({})

    def after_step(self, scalars: Mapping[str, float]) -> None:
        """Keep the best state above the guardrails; below one warn, or stop the run."""
        settings, step = self.learner.config.evaluate, self.learner.counters.step
        if not (self.learner.counters.trained and self.learner.due(settings.every)):
            return
        if not broadcast(self.main and step in self.recorder.evaluated["val"]):
            found = evaluate(self.learner, self.validation.evaluator, "validation", "tuned", self.recorder)
            if self.main:
                metrics = self.validation.metrics(self.run, found)
                write_evaluation(self.recorder, "val", step, {"metrics": metrics})
        warnings, score = broadcast(self._verdict() if self.main else None)
        for warning in warnings:
            self.recorder.console.print(f"step {step}: {warning}", style="red")
        self.learner.stopped = bool(warnings) and settings.stop_at_guardrail
        if not warnings and score is not None:
            self.saver.save_best(score)

    def _verdict(self) -> tuple[list[str], float | None]:
        """Return what fell below a guardrail at this step, and what the best state is chosen by."""
        row = self.recorder.evaluated["val"][self.learner.counters.step]
        metrics = {name.removeprefix("val/"): value for name, value in row.items() if value is not None}
        return self.validation.verdict(self.run, metrics)


def evaluate(
    learner: RFFTLearner,
    evaluator: Evaluator,
    grid: str,
    state: str,
    recorder: Recorder,
    folder: Path | None = None,
) -> Evaluation:
    """Evaluate the model as it is ("tuned") or as it was ("base"), in all processes together.

    folder: see Evaluator.
    """
    console = recorder.console
    with Progress(console=console, disable=console.quiet) as progress, learner.averaged():
        task = progress.add_task(f"evaluating the {state} model ({grid})", total=None)

        def report(done: int, total: int) -> None:
            show(progress, task, done, total)
            learner.raise_if_stopped()

        return evaluator(state == "base", report, folder)


def write_evaluation(recorder: Recorder, grid: str, step: int, state: store.State | None) -> None:
    """Record what an evaluation has found, unless there is none or that is done; `grid`: "eval" or "val"."""
    if recorder.main and state is not None and step not in recorder.evaluated[grid]:
        recorder.write(step, store.scalars(state, grid))


def run_counters(learner: RFFTLearner) -> dict[str, float]:
    """Return what a run has cost, as its summary has it."""
    counters = learner.counters
    return {
        "seconds": round(counters.seconds, 1),
        "steps": counters.step,
        "grad_samples": counters.grad_samples,
        "denoiser_forwards": counters.forwards,
    }
