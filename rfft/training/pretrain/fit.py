"""How the embedded models are trained: AdamW, a one-cycle rate and a moving average, by the loop of all
trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from rfft.errors import UserError
from rfft.models.pretrained import CONFIG_NAME, PretrainedModule
from rfft.training.distributed import Engine
from rfft.training.ema import Ema
from rfft.training.job import resume
from rfft.training.loop import run_loop
from rfft.training.optimization import StepCounters, plain_attention
from rfft.training.recorder import CheckpointSaver, Recorder
from rfft.training.step import Learner
from rfft.training.tracking import Tracker
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.lock import locked
from rfft.utils.log import open_run
from rfft.utils.signals import StopSignals

console = Console()
MADE = {  # what a part leaves below the folder of the weights, for those that build on it
    "vae": "rf-tiny/vae/config.json",
    "base": "rf-tiny/model_index.json",
    "depth": "rf-tiny-depth/config.json",
    "saliency": "rf-tiny-saliency/config.json",
}
LossFn = Callable[[int, np.random.Generator], Tensor]
Compilable = TypeVar("Compilable", bound=Callable[..., Any])
Net = TypeVar("Net", bound=nn.Module)
Own = TypeVar("Own", bound=PretrainedModule)


@dataclass(frozen=True)
class PretrainRun:
    """Folders of the weights and of the resumable state; a later run that goes on takes another seed."""

    out: Path
    state: Path
    steps: int  # of each training; 0, as the command line gives it: the part's own
    seed: int = 0
    compile: bool = False  # torch.compile: minutes at first, then faster steps
    signals: StopSignals = field(default_factory=StopSignals)

    def builds_on(self, *parts: str) -> None:
        """Raise a UserError where one of MADE is missing: now, and not after thousands of scenes were
        drawn.
        """
        for part in parts:
            if not (self.out / MADE[part]).is_file():
                raise UserError(
                    f"train {part} first: {self.out / MADE[part]} is missing; "
                    f"rfft adworld pretrain {part} --out {self.out}"
                )

    def compiled(self, function: Compilable) -> Compilable:
        """Return the function, compiled if that is wanted."""
        return cast(Compilable, torch.compile(function)) if self.compile else function


@dataclass(frozen=True)
class FitConfig:
    """Settings of one of these trainings."""

    lr: float  # the highest of the cycle
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    warmup: float = 0.05  # share of the steps
    seed: int = 0
    checkpoint_every: int = 100  # steps


def device() -> torch.device:
    """Return the GPU if there is one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_device(net: Net) -> Net:
    """Move a network to the accelerator if there is one, channels last."""
    return net.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def start(kind: type[Own], folder: Path, config: Any) -> Own:
    """Return a network to train: with the weights in `folder`, to go on from, or a new one."""
    net = kind.from_pretrained(folder) if (folder / CONFIG_NAME).exists() else kind(config)
    return on_device(net).train()


class PretrainLearner(Learner[Tensor]):
    """One of the embedded networks in training; a step is one batch."""

    ema: Ema
    advice = "Go on from the weights in --out, with another --seed and a new --state"

    def __init__(self, model: nn.Module, loss_fn: LossFn, config: FitConfig, run: PretrainRun) -> None:
        """Minimise `loss_fn(step, rng)` over the model's parameters; draws are a function of seeds and
        step.
        """
        accelerator = Accelerator(cpu=device().type == "cpu")
        if accelerator.num_processes > 1:
            raise UserError("rfft adworld pretrain trains in one process: start it without a launcher")
        super().__init__(accelerator)
        self.loss_fn, self.seeds = loss_fn, [config.seed, run.seed]
        self.counters, self.signals = StepCounters(), run.signals
        self.steps, self.max_grad_norm = run.steps, config.clip
        parameters = [p for p in model.parameters() if p.requires_grad]
        adamw = torch.optim.AdamW(parameters, config.lr, (0.9, 0.99), weight_decay=config.weight_decay)
        self.lr_schedule = torch.optim.lr_scheduler.OneCycleLR(
            adamw, config.lr, run.steps + 1, pct_start=config.warmup
        )
        self.engine = Engine(accelerator, model, adamw)
        self.tensors = model.state_dict()
        self.ema = Ema(self.tensors, config.ema)

    def micro_batch(self, micro: int) -> Tensor:
        rng = np.random.default_rng([*self.seeds, self.counters.step])
        torch.manual_seed(int(rng.integers(2**62)))
        with plain_attention(self.accelerator.device):
            loss = self.loss_fn(self.counters.step, rng)
            self.engine.backward(loss)
        return loss.detach()

    def scalars(self, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"loss": outputs[0]}

    def describe(self, scalars: Mapping[str, float]) -> str:
        return f"loss {scalars['train/loss']:.4f}"

    def trained_tensors(self) -> Mapping[str, Tensor]:
        return self.tensors


def fit(model: nn.Module, loss_fn: LossFn, config: FitConfig, run: PretrainRun, name: str) -> nn.Module:
    """Train the model, or go on with what is in run.state/NAME; returns it with its averaged weights.

    A run that was cut off goes on as if it had not been. Raises a UserError where the state is one of other
    steps or another seed, or where another command is at work on it.
    """
    folder = run.state / name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        settings = yaml.safe_dump({"steps": run.steps, "seed": run.seed})
        advice = (
            "give that again to resume it, or a new folder with --state to go on from the weights in --out"
        )
        open_run(folder, settings, advice=advice)
        learner = PretrainLearner(model, loss_fn, config, run)
        checkpoints = Checkpoints(folder / "checkpoints", keep=1)
        resume(folder, learner, checkpoints)
        tracker = Tracker("none", folder, {})
        with Recorder(folder, learner, tracker) as recorder:
            saver = CheckpointSaver(learner, checkpoints, config.checkpoint_every, recorder)
            run_loop(learner, [recorder, saver])
    model.load_state_dict(learner.ema.average)
    return model.eval()
