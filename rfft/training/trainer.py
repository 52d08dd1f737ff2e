"""`rfft train`: from a config to a trained generator, its evaluation, export and report."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from rfft import build
from rfft.config.load import MAY_CHANGE, to_yaml
from rfft.config.schema import Config
from rfft.data.samples import Skipped
from rfft.evaluation.evaluator import Evaluator
from rfft.evaluation.validation import Validation
from rfft.training.announce import announce_data
from rfft.training.callbacks import SAMPLES, ExportAndReport, SampleSheets
from rfft.training.costs import costs
from rfft.training.evaluations import Evaluations, Validations
from rfft.training.job import in_job, open_job, resume, start
from rfft.training.learner import RFFTLearner
from rfft.training.loop import Callback, run_loop
from rfft.training.recorder import CheckpointSaver, Recorder
from rfft.training.speed import Profile, prepare_rollouts
from rfft.training.tracking import Tracker
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.faults import require_agreement
from rfft.utils.lock import FolderLock
from rfft.utils.log import append_skipped, write_skipped
from rfft.utils.signals import StopSignals


def train(config: Config) -> Path:
    """Train, or go on with, the run that the config describes; returns its folder.

    Raises a UserError where another command is at work in that folder.
    """
    return in_job(config, _train, partial(memory_advice, config))


def _train(config: Config, lock: FolderLock, signals: StopSignals) -> None:
    accelerator, run = start(config, lock), lock.folder
    bundle = build.build_bundle(config, accelerator.device)
    set_tf32(config.objective.precision == "tf32")
    rfnet = build.build_rfnet(config, accelerator.device)
    reward = build.build_reward(config, rfnet, accelerator.device)
    skipped: list[Skipped] = []
    samples = build.build_samples(config, "train", skipped)
    evaluator = Evaluator(config, bundle, rfnet) if config.evaluate.enabled else None
    validation = Validation(config, bundle, evaluator) if evaluator and config.evaluate.every else None
    conditions = build.build_conditions(config, bundle, samples)
    learner = RFFTLearner(config, accelerator, bundle, reward, rfnet, conditions)
    prepare_rollouts(config, bundle)
    # Only now: a mistake in the config leaves no folder behind.
    open_job(lock, to_yaml(config), MAY_CHANGE, accelerator)
    if accelerator.is_main_process:
        write_skipped(run, [asdict(product) for product in skipped])
        samples.on_skip = lambda product: append_skipped(run, asdict(product))
        announce_data(config, samples, None if evaluator is None else evaluator.data)

    checkpoints = Checkpoints(run / "checkpoints", config.trainer.keep)
    resume(run, learner, checkpoints)
    require_agreement(accelerator, run, learner.counters.step, samples.agreed())
    learner.signals = signals
    tracker = Tracker(config.tracker.kind, run, asdict(config), accelerator.is_main_process)
    with Recorder(run, learner, tracker) as recorder:
        saver = CheckpointSaver(learner, checkpoints, config.trainer.checkpoint_every, recorder)
        callbacks: list[Callback] = [recorder, saver]
        shown = [samples.entry(i) for i in range(min(SAMPLES, len(samples)))]
        callbacks.append(SampleSheets(run, learner, recorder, shown))
        if evaluator is not None:
            callbacks.append(Evaluations(run, learner, evaluator, recorder, saver))
        if validation is not None:
            callbacks.append(Validations(run, learner, validation, recorder, saver))
        callbacks.append(ExportAndReport(run, learner, recorder, saver))
        if config.trainer.profile:
            callbacks.append(Profile(run, config.trainer.profile, accelerator.process_index))
        run_loop(learner, callbacks)


def set_tf32(allowed: bool) -> None:
    """Let CUDA compute fp32 products and convolutions in TF32, or both exactly: by itself torch mixes the
    two.
    """
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def memory_advice(config: Config) -> str:
    """What needs less memory, cheapest first, and where it goes; one line."""
    memory = costs(config).memory()  # counted without the generator's weights, on the CPU
    phases = [f"{name} {size}" for name, size in memory.items()]
    return (
        "Try in this order: trainer.decode_batch=1 (the same result), model.gradient_checkpointing=true (the "
        "same, a third more time), half of trainer.batch_size with twice trainer.accumulation; for an "
        "evaluation, a smaller evaluate.batch_size. The same command with these goes on from the last "
        "checkpoint. Before the first step, when products are encoded one by one, and where all that is not "
        "enough: model.dtype=bfloat16 trainer.mixed_precision=bf16 objective.precision=bf16, in a new run. "
        f"Memory of a process: {', '.join(phases)}"
    )
