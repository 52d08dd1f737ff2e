"""The training loop of RFNet: step, validate, export the best, save, resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor

from rfft.config.load import to_yaml
from rfft.errors import Interrupted, UserError
from rfft.evaluation.store import SUMMARY, read_json
from rfft.feedback.dataset import FeedbackDataset, FeedbackSource, Reading
from rfft.rfnet.build import build_rfnet, build_tokenizer
from rfft.rfnet.config import MAY_CHANGE, RFNetTrainingConfig
from rfft.rfnet.data import (
    FolderPictures,
    are_shards,
    batches,
    build_maps,
    fill_maps,
    open_both,
    split_records,
)
from rfft.rfnet.evaluate import CONFUSION, EVALUATION, EXPORT, predict, report, scalars, table, write
from rfft.rfnet.learner import RFNetLearner
from rfft.training.distributed import uses_deepspeed, uses_fsdp
from rfft.training.job import leave, resume, start
from rfft.training.tracking import Tracker
from rfft.utils.atomic_io import new_folder
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.contact_sheet import read_png
from rfft.utils.faults import explained, require_agreement
from rfft.utils.log import (
    MetricsFile,
    TrainingDisplay,
    messages,
    open_run,
    write_atomically,
    write_environment,
)
from rfft.utils.signals import StopSignals

ADVICE = "In a new run (run.name), lower optimizer.lr or set trainer.mixed_precision=no"
NOBODY = -1  # the label of a row that only fills up a process's part


def train(config: RFNetTrainingConfig) -> Path:
    """Train, or go on with, the run that the config describes; returns its folder."""
    advice = "Set half of trainer.batch_size and twice trainer.accumulation: the same command goes on"
    with explained(lambda: advice), StopSignals() as signals:
        return _train(config, Path(config.run.out) / config.run.name, signals)


def _train(config: RFNetTrainingConfig, run: Path, signals: StopSignals) -> Path:
    if uses_deepspeed() or uses_fsdp():
        raise UserError("RFNet is small and trains under DDP alone: take launch/multi_gpu.yaml")
    accelerator = start(config, run, broadcast_buffers=True)  # batch norm's
    tokenizer = build_tokenizer(config.rfnet.text_encoder)
    model = build_rfnet(config, tokenizer)
    training, validation = build_data(config, accelerator)
    if accelerator.is_main_process:  # only now: a mistake in the config leaves no folder behind
        open_run(run, to_yaml(config), MAY_CHANGE)
        write_environment(run)
    accelerator.wait_for_everyone()

    learner = RFNetLearner(config, accelerator, model, tokenizer, training.counts)
    checkpoints = Checkpoints(run / "checkpoints", config.trainer.keep)
    resume(learner, checkpoints)
    require_agreement(accelerator, run, learner.counters.step, [str(count) for count in training.counts])
    callbacks = RFNetCallbacks(run, learner, checkpoints, validation)
    learner.signals = signals
    signals.deferred = True
    try:
        with callbacks.display:
            loop(learner, callbacks, training_batches(learner, training))
    except Interrupted:  # in all processes at one place, see RFNetLearner.heed
        callbacks.stop()
        leave(accelerator)
        raise
    callbacks.after()
    leave(accelerator)
    return run


def build_data(config: RFNetTrainingConfig, accelerator: Any) -> tuple[FeedbackSource, FeedbackSource]:
    """Training and validation pictures, with all their maps."""
    size, coarse = config.data.image_size or config.rfnet.image_size, config.objective.labels == "coarse"
    if are_shards([*config.data.train, *config.data.validation]):
        return open_both(config.data, size, config.maps, coarse)
    records = split_records(config.data)
    maps = build_maps(config.maps, config.rfnet.drop)
    part = slice(accelerator.process_index, None, accelerator.num_processes)
    for some in records:
        fill_maps(maps, some, config.maps, accelerator.device, part)
    accelerator.wait_for_everyone()
    training, validation = (
        FolderPictures(FeedbackDataset(some, size, maps, coarse), coarse) for some in records
    )
    return training, validation


def reading(config: RFNetTrainingConfig, accelerator: Any) -> Reading:
    """This process's part of the pictures."""
    part = accelerator.process_index, accelerator.num_processes
    return Reading(config.trainer.batch_size, config.data.workers, *part)


def training_batches(learner: RFNetLearner, training: FeedbackSource) -> Iterator[dict[str, Any]]:
    """This process's micro-batches from the learner's step on, without end."""
    config = learner.config
    first = learner.counters.step * config.trainer.accumulation
    own = reading(config, learner.accelerator)
    return batches(training.endless(own, first, config.run.seed, config.data.mirror))


def loop(learner: RFNetLearner, callbacks: RFNetCallbacks, source: Iterator[dict[str, Any]]) -> None:
    """Step until finished."""
    callbacks.validate_if_due()  # a signal may have kept the run from it
    while not learner.finished():
        metrics = learner.step(source)
        learner.counters.check_skipped(learner.accelerator.scaler, ADVICE)
        callbacks.after_step(metrics)
        learner.heed()  # between steps alone: batch norm remembers every forward


class RFNetCallbacks:
    """What is done beside training: all processes validate, the main one writes and shows."""

    def __init__(
        self, run: Path, learner: RFNetLearner, checkpoints: Checkpoints, validation: FeedbackSource
    ) -> None:
        self.run, self.learner, self.checkpoints, self.validation = run, learner, checkpoints, validation
        self.is_main = learner.accelerator.is_main_process
        self.console = messages(quiet=not self.is_main)
        self.metrics_file = (
            MetricsFile(run / "metrics.jsonl", learner.counters.step) if self.is_main else None
        )
        self.tracker = Tracker(learner.config.tracker.kind, run, asdict(learner.config), self.is_main)
        counters, limit = learner.counters, learner.config.trainer.max_minutes
        left = None if limit is None else 60 * limit - counters.seconds
        self.display = TrainingDisplay(learner.steps, counters.step, self.console, seconds=left)

    def after_step(self, metrics: dict[str, float]) -> None:
        learner, trainer = self.learner, self.learner.config.trainer
        step = learner.counters.step
        self.record(step, metrics)
        if learner.counters.skipped_in_a_row:
            self.console.print(f"step {step} is skipped: its loss or gradient is not finite", style="red")
        shown = f"loss {metrics['train/loss']:.3f}  accuracy {metrics['train/accuracy']:.0%}"
        best = learner.counters.best_ap
        self.display.show(step, shown + (f"  best AP {best:.1%}" if best >= 0 else ""))
        self.validate_if_due()
        # Last: what comes before it in a step is repeated by a run that is resumed from the one before.
        if self.is_main and (step % trainer.checkpoint_every == 0 or learner.finished()):
            self.save(step)

    def validate_if_due(self) -> None:
        """Validate, where it is this step's turn and not done yet."""
        learner, step = self.learner, self.learner.counters.step
        every = learner.config.trainer.validate_every or learner.steps_per_epoch
        if step > learner.counters.validated and (step % every == 0 or learner.finished()):
            self.validate(step)

    def save(self, step: int) -> None:
        if self.metrics_file is not None:
            self.metrics_file.sync()
        self.checkpoints.save(step, self.learner.weights(), self.learner.objects())

    def stop(self) -> None:
        """Interrupted: keep what has been done."""
        if not self.is_main:
            return
        step = self.learner.counters.step
        if step and not self.checkpoints.has(step):
            self.save(step)
        self.close()

    def close(self) -> None:
        if self.metrics_file is not None:
            self.metrics_file.close()
        self.tracker.close()

    def record(self, step: int, metrics: dict[str, float]) -> None:
        if self.metrics_file is not None:
            self.metrics_file.write(step, metrics)
            self.tracker.log(metrics, step)

    def validate(self, step: int) -> None:
        """Judge the validation pictures, each process a part; keep the network if its AP is the best yet."""
        metrics = report(*self.judge())
        best = self.learner.judged(metrics["ap_available"])
        self.record(step, scalars(metrics))
        self.console.print(
            f"step {step}: AP(available) {metrics['ap_available']:.1%}, macro F1 {metrics['macro_f1']:.1%}"
            + ("" if best else f" (best AP {self.learner.counters.best_ap:.1%})"),
            highlight=False,
        )
        if best and self.is_main:
            self.export()
            write(self.run, {"data": "validation", "step": step, **metrics})
            picture = read_png(self.run / CONFUSION)
            self.tracker.pictures("confusion", picture[None], {"step": [step]}, step)

    def judge(self) -> tuple[Tensor, Tensor]:
        """Probabilities [N,K] and labels [N] of all validation pictures, in every process."""
        learner, accelerator = self.learner, self.learner.accelerator
        loader = self.validation.once(reading(learner.config, accelerator))
        broadcast(list(learner.rfnet.buffers()))  # each process's own since the last step; 0's are exported
        learner.rfnet.eval()
        own = takewhile(lambda _: learner.signals.received is None, batches(loader))
        with accelerator.autocast():
            judged = predict(learner.rfnet, own, learner.tokenizer, accelerator.device)
        learner.rfnet.train()
        learner.heed()
        everywhere = [
            accelerator.gather(
                accelerator.pad_across_processes(t.to(accelerator.device), pad_index=NOBODY)
            ).cpu()
            for t in judged
        ]
        real = everywhere[1] != NOBODY
        return everywhere[0][real], everywhere[1][real]

    def export(self) -> None:
        """RUN/rfnet: what RFNet.from_pretrained, `rfft rfnet evaluate` and reward.rfnet take."""
        with new_folder(self.run / EXPORT, replace=True) as draft:
            self.learner.rfnet.save_pretrained(draft)
            self.learner.tokenizer.save_pretrained(draft)

    def after(self) -> None:
        """Tell what there is."""
        if not self.is_main:
            return
        counters = self.learner.counters
        summary = {
            "seconds": round(counters.seconds, 1),
            "steps": counters.step,
            "pictures": counters.pictures,
            "best_step": counters.best_step,
            "ap_available": counters.best_ap,
        }
        write_atomically(self.run / SUMMARY, json.dumps(summary, indent=2) + "\n")
        self.tracker.artifact(self.run / EXPORT, summary, kind=EXPORT)
        self.close()
        self.console.print(table(read_json(self.run / EVALUATION)))
        for name in (EXPORT, EVALUATION, CONFUSION):
            self.console.print(f"{name:16} {self.run / name}", highlight=False, soft_wrap=True)
