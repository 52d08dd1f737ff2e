"""THE TRAINING LOOP, used by RFFT, by RFNet and by the embedded world's networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rfft.data.samples import UnusableProduct
from rfft.errors import Interrupted
from rfft.training.job import leave
from rfft.training.step import Learner
from rfft.utils.display import TrainingDisplay
from rfft.utils.log import messages


class Callback:
    """Something done beside training: checkpoints, samples, evaluations.

    Every process has the same callbacks in the same order, so they may exchange data; what is written is for
    the first process to write.
    """

    def on_start(self) -> None:
        """Called once before the first step, also of a resumed run: make up for what was left undone."""

    def after_step(self, scalars: Mapping[str, float]) -> None:
        """Called after every optimizer step with what Learner.step() returned."""

    def on_stop(self) -> None:
        """Called when a signal has interrupted the run: keep what has been done."""

    def on_end(self) -> None:
        """Called once all steps are done."""

    def close(self) -> None:
        """Called last of all, however the run ended; must not raise."""


def run_loop(learner: Learner[Any], callbacks: Sequence[Callback]) -> None:
    """Train from wherever the learner is until it is finished; every process of the job calls this.

    Raises Interrupted after a signal, when the callbacks have kept what was done, and a UserError where
    gradients are not finite for too long, or where a product cannot be used: one process alone keeps what was
    done then, too.
    """
    learner.signals.deferred = True  # from here on there is something to save
    try:
        for callback in callbacks:
            callback.on_start()
        with display_of(learner) as display:
            while not learner.finished():
                scalars = learner.step()
                learner.check_skipped()
                counters = learner.counters
                display.show(counters.step, learner.describe(scalars), counters.seconds)
                for callback in callbacks:
                    callback.after_step(scalars)
                learner.raise_if_stopped()
        learner.check_skipped()
        for callback in callbacks:
            callback.on_end()
    except Interrupted:  # in all processes at one place
        for callback in callbacks:
            callback.on_stop()
        leave(learner.accelerator)
        raise
    except UnusableProduct:  # in one process: the others would be waited for in vain
        if learner.accelerator.num_processes == 1:
            for callback in callbacks:
                callback.on_stop()
        raise
    finally:
        for callback in callbacks:
            callback.close()
    leave(learner.accelerator)


def display_of(learner: Learner[Any]) -> TrainingDisplay:
    """Return the first process's live line about the steps that are still to be made."""
    counters, limit = learner.counters, learner.max_minutes
    return TrainingDisplay(
        learner.steps,
        start=(counters.step, counters.seconds),
        max_seconds=None if limit is None else 60 * limit,
        console=messages(quiet=not learner.accelerator.is_main_process),
    )
