"""The training loop: step, log, sample, save; evaluate, export and report around it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from rfft import build
from rfft.config.load import to_yaml
from rfft.config.schema import MAY_CHANGE, Config
from rfft.data.samples import Skipped
from rfft.errors import Interrupted
from rfft.evaluation.evaluator import Evaluator
from rfft.evaluation.validation import Validation
from rfft.training.announce import announce_data
from rfft.training.callbacks import SAMPLES, TrainingCallbacks, paint_samples
from rfft.training.costs import costs
from rfft.training.job import leave, resume, start
from rfft.training.learner import Learner
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.faults import explained, require_agreement
from rfft.utils.log import open_run, write_environment, write_skipped
from rfft.utils.processes import broadcast
from rfft.utils.signals import StopSignals

Evaluators = Mapping[str, Evaluator]  # "test" and, with evaluate.every, "validation"
ADVICE = "In a new run (run.name), lower optimizer.lr or objective.beta, or set trainer.mixed_precision=no"


def train(config: Config) -> Path:
    """Train, or go on with, the run that the config describes; returns its folder."""
    run = Path(config.run.out) / config.run.name
    with explained(partial(memory_advice, config)), StopSignals() as signals:
        return _train(config, run, signals)


def _train(config: Config, run: Path, signals: StopSignals) -> Path:
    accelerator = start(config, run)
    bundle = build.build_bundle(config, accelerator.device)
    set_tf32(config.objective.precision == "tf32")
    rfnet = build.build_rfnet(config, accelerator.device)
    reward = build.build_reward(config, rfnet, accelerator.device)
    skipped: list[Skipped] = []
    samples = build.build_samples(config, "train", skipped)
    evaluator = Evaluator(config, bundle, rfnet) if config.evaluate.enabled else None
    validation = Validation(config, bundle, evaluator) if evaluator and config.evaluate.every else None
    conditions = build.build_conditions(config, bundle, samples)
    learner = Learner(config, accelerator, bundle, reward, rfnet, conditions)
    if accelerator.is_main_process:  # only now: a mistake in the config leaves no folder behind
        open_run(run, to_yaml(config), MAY_CHANGE)
        write_environment(run)
        write_skipped(run, [asdict(product) for product in skipped])
        announce_data(config, samples, None if evaluator is None else evaluator.samples)
    accelerator.wait_for_everyone()

    checkpoints = Checkpoints(run / "checkpoints", config.trainer.keep)
    resume(learner, checkpoints)
    require_agreement(accelerator, run, learner.counters.step, [sample.id for sample in samples])
    main = accelerator.is_main_process
    callbacks = None
    if main:
        callbacks = TrainingCallbacks(run, learner, checkpoints, evaluator, validation, samples[:SAMPLES])
    evaluators = {} if evaluator is None else {"test": evaluator}
    evaluators |= {} if validation is None else {"validation": validation.evaluator}
    learner.signals = signals
    signals.deferred = True
    try:
        tune(learner, callbacks, evaluators, checkpoints)
    except Interrupted:  # in all processes at one place, see Learner.heed
        learner.collect()
        if callbacks is not None:
            callbacks.stop()
        leave(accelerator)
        raise
    leave(accelerator)
    return run


def tune(
    learner: Learner,
    callbacks: TrainingCallbacks | None,
    evaluators: Evaluators,
    checkpoints: Checkpoints,
) -> None:
    """From the base model's evaluation to the report; `watch` in the main process."""
    if callbacks is not None:
        callbacks.before()
    meet(learner, evaluators)
    sample_and_evaluate(learner, callbacks, evaluators)  # a signal may have kept the run from it
    with nullcontext() if callbacks is None else callbacks.display:
        loop(learner, callbacks, evaluators)
    if learner.stopped and (best := broadcast(checkpoints.best())):
        learner.load_weights(best)
    if callbacks is not None:
        callbacks.after()
    meet(learner, evaluators)


def meet(learner: Learner, evaluators: Evaluators) -> None:
    """The other processes take part in what the main one makes of the model until it comes here too."""
    if learner.accelerator.is_main_process:
        broadcast(None)
        return
    while (wanted := broadcast(None)) is not None:
        with learner.averaged():
            if wanted == "samples":
                paint_samples(learner)
            else:
                grid, state = wanted
                evaluators[grid](reference=state == "base", report=lambda *_: learner.heed())


def set_tf32(allowed: bool) -> None:
    """Let CUDA compute fp32 products and convolutions in TF32, or both exactly; torch would mix the two."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def memory_advice(config: Config) -> str:
    """What needs less memory, cheapest first, and where it goes; one line."""
    facts = costs(config)  # without the generator's weights, on the CPU
    phases = [f"{name[8:]} {size}" for name, size in facts.items() if name.startswith("memory: ")]
    return (
        "Try in this order: trainer.decode_batch=1 (the same result), model.gradient_checkpointing=true (the "
        "same, a third more time), half of trainer.batch_size with twice trainer.accumulation; for an "
        "evaluation, a smaller evaluate.batch_size. The same command with these goes on from the last "
        "checkpoint. Before the first step, where products are encoded one by one, and where all that is not "
        "enough: model.dtype=bfloat16 trainer.mixed_precision=bf16 objective.precision=bf16, in a new run. "
        f"Memory of a process: {', '.join(phases)}"
    )


def loop(learner: Learner, callbacks: TrainingCallbacks | None, evaluators: Evaluators) -> None:
    """Step until finished; `watch` in the main process."""
    while not learner.finished():
        scalars = learner.step()
        if learner.to_be_saved():
            learner.collect()
        learner.counters.check_skipped(learner.accelerator.scaler, ADVICE)
        if callbacks is not None:
            callbacks.after_step(scalars)
        sample_and_evaluate(learner, callbacks, evaluators)
    if callbacks is not None:
        callbacks.keep()


def sample_and_evaluate(
    learner: Learner, callbacks: TrainingCallbacks | None, evaluators: Evaluators
) -> None:
    """Samples and evaluation, where this step is one for them; a guardrail may stop the run."""
    if not learner.to_be_shown():
        return
    if callbacks is not None:
        callbacks.sample_and_evaluate()
    meet(learner, evaluators)
    learner.stopped = broadcast(learner.stopped)
