"""`rfft preference train` and `rfft aesthetic train`: from people's votes to a reward."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rfft.config.load import to_yaml
from rfft.evaluation.store import EVALUATION, SUMMARY, read_json, write_json
from rfft.preference.opinions import split
from rfft.preference.pairs import Pairs
from rfft.preference.schema import (
    MAY_CHANGE,
    AestheticTrainingConfig,
    OpinionConfig,
    PreferenceTrainingConfig,
)
from rfft.preference.scores import Scores
from rfft.preference.task import Figures, Items, Task, looker
from rfft.rewards.opinion import Encoded
from rfft.rfnet.data import Positions, Shuffled, batches
from rfft.training import optimization
from rfft.training.distributed import require_ddp
from rfft.training.job import in_job, open_job, resume, start
from rfft.training.loop import Callback, run_loop
from rfft.training.recorder import CheckpointSaver, Recorder
from rfft.training.supervised import Batch, SupervisedLearner, Validation
from rfft.training.tracking import Tracker
from rfft.utils.atomic_io import new_folder
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.faults import require_agreement
from rfft.utils.lock import FolderLock
from rfft.utils.signals import StopSignals


class OpinionLearner(SupervisedLearner):
    """A network of opinions and a micro-batch of examples."""

    weights_name = "network"

    def __init__(
        self, config: OpinionConfig, accelerator: Any, network: Encoded, task: Task[Any], examples: int
    ) -> None:
        super().__init__(config, accelerator, network, examples)
        self.config, self.network, self.task = config, network, task

    def micro_batch(self, micro: int) -> dict[str, Tensor]:
        """Make forward and backward pass; returns what the task shows of it."""
        device = self.accelerator.device
        batch = to_device(next(self.batches), device)
        self.seed_draws(micro)
        with optimization.plain_attention(device):
            with self.accelerator.autocast():
                found = self.task.loss(self.forward, batch)
            self.engine.backward(found["loss"])
        return {name: value.detach() for name, value in found.items()}


class OpinionValidation(Validation):
    """Figures on the validation examples every so many steps; the best network is exported."""

    learner: OpinionLearner

    def __init__(self, run: Path, learner: OpinionLearner, items: Items, recorder: Recorder) -> None:
        super().__init__(learner)
        self.run, self.items, self.recorder = run, items, recorder

    def validate(self) -> None:
        """Measure, and export the network if its figure is the best yet."""
        learner, step = self.learner, self.learner.counters.step
        task = learner.task
        with learner.averaged():
            figures = measure(task, learner.network, self.items, learner.accelerator.device)
            learner.network.train()
            value = figures[task.chosen_by]
            best = learner.note_validation(-1.0 if value is None else value)
            numbers = {f"eval/{name}": v for name, v in figures.items() if isinstance(v, (int, float))}
            self.recorder.write(step, numbers)
            if not (best and learner.accelerator.is_main_process):
                return
            with new_folder(self.run / task.name, replace=True) as draft:
                task.export(learner.network, figures, draft)
            write_json(self.run / EVALUATION, {"data": "validation", "step": step, **figures})


class OpinionSummary(Callback):
    """The end of a run: summary.json, the network handed to the tracker, and its figures on the terminal."""

    def __init__(self, run: Path, learner: OpinionLearner, recorder: Recorder) -> None:
        self.run, self.learner, self.recorder = run, learner, recorder

    def on_end(self) -> None:
        if not self.learner.accelerator.is_main_process:
            return
        counters, name = self.learner.counters, self.learner.task.name
        summary = {"seconds": round(counters.seconds, 1), "steps": counters.step}
        summary |= {"examples": counters.pictures, "best_step": counters.best_step}
        write_json(self.run / SUMMARY, summary | {self.learner.task.chosen_by: counters.best_score}, indent=2)
        self.recorder.tracker.artifact(self.run / name, summary, kind=name)
        show(read_json(self.run / EVALUATION), self.recorder.console)
        for left in (name, EVALUATION):
            self.recorder.console.print(f"{left:16} {self.run / left}", highlight=False, soft_wrap=True)


def train(config: PreferenceTrainingConfig | AestheticTrainingConfig) -> Path:
    """Train, or go on with, the run that the config describes; returns its folder.

    Raises a UserError where another command is at work in that folder.
    """
    return in_job(config, _train)


def _train(
    config: PreferenceTrainingConfig | AestheticTrainingConfig, lock: FolderLock, signals: StopSignals
) -> None:
    require_ddp("this network")
    task = make_task(config)
    opinions = task.read(Path(config.data.train))
    pictures, held = dict(opinions.pictures), config.data.validation
    if held is None:
        training, validation = split(opinions, config.data.validation_share)
    else:
        others = task.read(Path(held))
        training, validation, pictures = opinions.examples, others.examples, pictures | others.pictures
    accelerator, run = start(config, lock), lock.folder
    torch.manual_seed(config.run.seed)
    network = task.build().to(accelerator.device)
    look = looker(network, pictures, config.network.train == "heads", accelerator.device)
    open_job(lock, to_yaml(config), MAY_CHANGE, accelerator)  # a mistake so far leaves no folder behind
    learner = OpinionLearner(config, accelerator, network, task, len(training))
    checkpoints = Checkpoints(run / "checkpoints", config.trainer.keep)
    resume(run, learner, checkpoints)
    require_agreement(accelerator, run, learner.counters.step, [str(len(training))])
    learner.batches, learner.signals = endless(learner, task.items(training, look)), signals
    tracker = Tracker(config.tracker.kind, run, asdict(config), accelerator.is_main_process)
    with Recorder(run, learner, tracker) as recorder:
        measured = OpinionValidation(run, learner, task.items(validation, look), recorder)
        saver = CheckpointSaver(learner, checkpoints, config.trainer.checkpoint_every, recorder)
        # A step's checkpoint comes after its validation and knows how that went.
        run_loop(learner, [recorder, measured, saver, OpinionSummary(run, learner, recorder)])


def make_task(config: OpinionConfig) -> Task[Any]:
    """Return the task of a config."""
    if isinstance(config, AestheticTrainingConfig):
        return Scores(config)
    assert isinstance(config, PreferenceTrainingConfig)
    return Pairs(config)


def endless(learner: OpinionLearner, items: Items) -> Iterator[Batch]:
    """Return this process's micro-batches from the learner's step on, a function of seed and place alone."""
    config, accelerator = learner.config, learner.accelerator
    first = learner.counters.step * config.trainer.accumulation
    own = accelerator.process_index, accelerator.num_processes
    positions = Positions(first, config.trainer.batch_size, *own)
    shuffled = Shuffled(items, config.run.seed, mirror=False)
    return batches(DataLoader(shuffled, batch_sampler=positions, num_workers=config.data.workers))


@torch.no_grad()
def measure(
    task: Task[Any], network: Encoded, items: Items, device: torch.device, tie: float | None = None
) -> Figures:
    """Return the figures of a network on examples; every process measures all."""
    network.eval()
    found = [task.outputs(network, to_device(batch, device)) for batch in batches(DataLoader(items, 32))]
    return task.figures({name: torch.cat([part[name] for part in found]) for name in found[0]}, tie)


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """Move a batch's tensors."""
    return {name: v.to(device).float() if isinstance(v, Tensor) else v for name, v in batch.items()}


def show(figures: Mapping[str, Any], console: Any) -> None:
    """Print figures, those of dimensions and defects on lines of their own."""
    for value in figures.values():
        if isinstance(value, Mapping):
            for part, own in value.items():
                console.print(f"{part:24} {_line(own)}", highlight=False)
    plain = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    console.print(_line(plain), highlight=False)


def _line(figures: Mapping[str, Any]) -> str:
    shown: Sequence[str] = [
        f"{name.replace('_', ' ')} {json.dumps(round(value, 4) if isinstance(value, float) else value)}"
        for name, value in figures.items()
        if not isinstance(value, list)
    ]
    return ", ".join(shown)
