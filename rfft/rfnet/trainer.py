"""`rfft rfnet train`: from a config to a trained RFNet and its metrics on the validation pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rfft.config.load import to_yaml
from rfft.feedback.dataset import FeedbackDataset, FeedbackSource, Reading
from rfft.rewards.rfnet import RFNet
from rfft.rfnet.build import build_rfnet, build_tokenizer
from rfft.rfnet.config import uses_scenes
from rfft.rfnet.data import (
    FolderPictures,
    are_shards,
    batches,
    build_maps,
    fill_maps,
    network_inputs,
    open_both,
    split_records,
)
from rfft.rfnet.learner import RFNetLearner
from rfft.rfnet.scenes import SceneInputs, open_scenes
from rfft.rfnet.schema import MAY_CHANGE, RFNetTrainingConfig
from rfft.rfnet.validation import RFNetSummary, RFNetValidation
from rfft.training.distributed import require_ddp
from rfft.training.job import in_job, open_job, resume, start
from rfft.training.loop import run_loop
from rfft.training.recorder import CheckpointSaver, Recorder
from rfft.training.tracking import Tracker
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.faults import require_agreement
from rfft.utils.lock import FolderLock
from rfft.utils.signals import StopSignals


def train(config: RFNetTrainingConfig) -> Path:
    """Train, or go on with, the run that the config describes; returns its folder.

    Raises a UserError where another command is at work in that folder.
    """
    return in_job(config, _train)


def _train(config: RFNetTrainingConfig, lock: FolderLock, signals: StopSignals) -> None:
    require_ddp("RFNet")
    accelerator, run = start(config, lock, broadcast_buffers=True), lock.folder  # batch norm's
    tokenizer = build_tokenizer(config.rfnet)
    model = build_rfnet(config, tokenizer)
    training, validation = build_data(config, model, tokenizer, accelerator)
    # Only now: a mistake in the config leaves no folder behind.
    open_job(lock, to_yaml(config), MAY_CHANGE, accelerator)

    inputs = build_inputs(config, tokenizer, accelerator)
    learner = RFNetLearner(config, accelerator, model, inputs, training.counts)
    checkpoints = Checkpoints(run / "checkpoints", config.trainer.keep)
    resume(run, learner, checkpoints)
    require_agreement(accelerator, run, learner.counters.step, [str(count) for count in training.counts])
    own = reading(config, accelerator)
    learner.batches = training_batches(learner, training, own)
    learner.signals = signals
    tracker = Tracker(config.tracker.kind, run, asdict(config), accelerator.is_main_process)
    with Recorder(run, learner, tracker) as recorder:
        saver = CheckpointSaver(learner, checkpoints, config.trainer.checkpoint_every, recorder)
        # A step's checkpoint comes after its validation and knows how that went.
        run_loop(
            learner,
            [
                recorder,
                RFNetValidation(run, learner, validation, own, recorder, tokenizer),
                saver,
                RFNetSummary(run, learner, recorder),
            ],
        )


def build_data(
    config: RFNetTrainingConfig, model: RFNet, tokenizer: Any, accelerator: Any
) -> tuple[FeedbackSource, FeedbackSource]:
    """Return training and validation pictures; those of folders and shards with all their maps."""
    if uses_scenes(config.data):
        return open_scenes(config.data, tokenizer, accelerator)
    size, coarse = config.data.image_size or model.config.image_size, config.objective.labels == "coarse"
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


def build_inputs(
    config: RFNetTrainingConfig, tokenizer: Any, accelerator: Any
) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
    """Return what makes the network's arguments of a batch."""
    if uses_scenes(config.data):
        return SceneInputs(config.maps, config.rfnet.drop, accelerator)
    return partial(network_inputs, tokenizer=tokenizer, device=accelerator.device)


def reading(config: RFNetTrainingConfig, accelerator: Any) -> Reading:
    """Return how this process reads its part of the pictures."""
    part = accelerator.process_index, accelerator.num_processes
    return Reading(config.trainer.batch_size, config.data.workers, *part)


def training_batches(
    learner: RFNetLearner, training: FeedbackSource, own: Reading
) -> Iterator[dict[str, Any]]:
    """Return this process's micro-batches from the learner's step on, without end."""
    config = learner.config
    first = learner.counters.step * config.trainer.accumulation
    return batches(training.endless(own, first, config.run.seed, config.data.mirror))
