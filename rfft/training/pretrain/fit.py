"""The one training loop of all embedded models: AdamW, one-cycle rate, EMA, resumable, progress shown."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfft.errors import UserError
from rfft.models.pretrained import CONFIG_NAME, PretrainedModule
from rfft.utils.atomic_io import new_file

console = Console()
MADE = {  # what a part leaves below the folder of the weights, for those that build on it
    "vae": "rf-tiny/vae/config.json",
    "base": "rf-tiny/model_index.json",
    "depth": "rf-tiny-depth/config.json",
    "saliency": "rf-tiny-saliency/config.json",
}
LossFn = Callable[[int, np.random.Generator], Tensor]


Compilable = TypeVar("Compilable", bound=Callable[..., Any])


@dataclass(frozen=True)
class PretrainRun:
    """Folders of the weights and of the resumable state; a later run that goes on takes another seed."""

    out: Path
    state: Path
    steps: int
    seed: int = 0
    drop: tuple[str, ...] = ()  # modalities that an ablated RFNet goes without
    compile: bool = False  # torch.compile: minutes at first, then faster steps

    def builds_on(self, *parts: str) -> None:
        """A UserError where one of MADE is missing: now, and not after thousands of scenes were drawn."""
        for part in parts:
            if not (self.out / MADE[part]).is_file():
                raise UserError(
                    f"train {part} first: {self.out / MADE[part]} is missing; "
                    f"rfft adworld pretrain {part} --out {self.out}"
                )

    def compiled(self, function: Compilable) -> Compilable:
        return cast(Compilable, torch.compile(function)) if self.compile else function


@dataclass(frozen=True)
class FitConfig:
    lr: float
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    warmup: float = 0.05  # share of the steps
    seed: int = 0
    save_every_s: float = 60.0


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


Net = TypeVar("Net", bound=nn.Module)


def on_device(net: Net) -> Net:
    """On the accelerator if there is one, channels last."""
    return net.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


Own = TypeVar("Own", bound=PretrainedModule)


def start(kind: type[Own], folder: Path, config: Any) -> Own:
    """A network to train: with the weights in `folder`, to go on from, or new."""
    net = kind.from_pretrained(folder) if (folder / CONFIG_NAME).exists() else kind(config)
    return on_device(net).train()


def fit(model: nn.Module, loss_fn: LossFn, config: FitConfig, run: PretrainRun, name: str) -> nn.Module:
    """Minimise `loss_fn(step, rng)` over the model's parameters; returns it with its averaged (EMA) weights.

    The generator depends on seeds and step alone, so a run that was cut off goes on as if it had not been.
    """
    state_file, steps = run.state / f"{name}.pt", run.steps
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps + 1, pct_start=config.warmup)
    named = {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule}
    plan = {"steps": steps, "seed": run.seed}
    first = _resume(named, plan, state_file)
    saved, running = time.monotonic(), float("nan")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console)
    with shown as progress:
        task = progress.add_task(name, total=steps, completed=first, loss=running)
        for step in range(first, steps):
            rng = np.random.default_rng([config.seed, run.seed, step])
            torch.manual_seed(int(rng.integers(2**62)))
            optimizer.zero_grad(set_to_none=True)
            with sdpa_kernel(SDPBackend.MATH):  # on a CPU fused attention's backward is many times slower
                loss = loss_fn(step, rng)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            schedule.step()
            _average(ema, model, min(config.ema, (step + 1) / (step + 10)))
            running = loss.item() if running != running else 0.98 * running + 0.02 * loss.item()
            progress.update(task, advance=1, loss=running)
            if time.monotonic() - saved > config.save_every_s:
                _save(named, plan | {"step": step + 1}, state_file)
                saved = time.monotonic()
                if not console.is_terminal:
                    console.print(f"{name} step {step + 1}/{steps} loss {running:.4f}")
    _save(named, plan | {"step": steps}, state_file)
    model.load_state_dict(ema.state_dict())
    return model.eval()


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    ema_values, values = list(ema.state_dict().values()), list(model.state_dict().values())
    for old, new in zip(ema_values, values, strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


def _save(named: dict, place: dict[str, int], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        torch.save(place | {name: thing.state_dict() for name, thing in named.items()}, file)


def _resume(named: dict, plan: dict[str, int], path: Path) -> int:
    """The step to go on from; a UserError where the state belongs to a run of other steps or seed."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device(), weights_only=True)
    for name, wanted in plan.items():
        if (saved := state.get(name, wanted)) != wanted:
            raise UserError(
                f"{path} is of a run with --{name} {saved}, not {wanted}: give that again to resume it, or a "
                "new folder with --state to go on from the weights in --out"
            )
    for name, thing in named.items():
        thing.load_state_dict(state[name])
    return int(state["step"])
