"""The embedded world's networks, trained one by one or all from nothing, and what each of them took."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate.state import AcceleratorState

from rfft.models.pretrained import CONFIG_NAME
from rfft.rfnet import trainer
from rfft.rfnet.config import load_config
from rfft.training.pretrain import assess, calibrate, rfnet
from rfft.training.pretrain.fit import PretrainRun, console
from rfft.utils.log import write_atomically
from rfft.utils.signals import StopSignals

PARTS = ("vae", "base", "depth", "saliency", "rfnet", "judge", "probe")  # each builds on some before it
RECIPE = "rfnet_embedded"
TIMES = "minutes.json"  # in the folder of the state: what each part took until now, and whether it is done


@dataclass(frozen=True)
class World:
    """Folders of the weights and of the resumable state, and what all trainings have in common."""

    out: Path
    state: Path
    steps: int | None = None  # of each training; None: each part's own
    seed: int = 0
    compile: bool = False


def train_all(world: World) -> None:
    """Train every part in its order, calibrate RFNet and judge, and measure all; the same call goes on."""
    work: dict[str, Callable[[], None]] = {part: partial(train_part, world, part) for part in PARTS}
    work |= {
        "calibrate": partial(calibrate.calibrate, world.out),
        "assess": partial(assess.assess, world.out),
        "stress": partial(assess.assess_stress, world.out),
    }
    for part, do in work.items():
        if not _times(world).get(part, {}).get("done"):
            console.print(f"== {part}")
            # Accelerate has one precision for the whole process, and the parts have different ones.
            AcceleratorState._reset_state(reset_partial_state=True)
            with _timed(world, part):
                do()
    for part, took in _times(world).items():
        console.print(f"{part}: {took['minutes']:.1f} minutes")
    console.print(f"together: {sum(took['minutes'] for took in _times(world).values()):.1f} minutes")


def train_part(world: World, part: str) -> None:
    """Train one of PARTS, or "flow": from the weights that it has in world.out, or from nothing."""
    if part == "rfnet":
        _train_rfnet(world)
        return
    module = importlib.import_module(f"rfft.training.pretrain.{part}")
    with StopSignals() as signals:
        steps = world.steps or module.STEPS
        module.train(PretrainRun(world.out, world.state, steps, world.seed, world.compile, signals))


def _train_rfnet(world: World) -> None:
    PretrainRun(world.out, world.state, 1).builds_on("base", "depth", "saliency")
    folder, base = world.out / rfnet.NAME, world.out / "rf-tiny"
    reads = folder if (folder / "tokenizer.json").exists() else base / "tokenizer"
    settings = [
        f"run.out={world.state}",
        "run.name=rfnet",
        f"run.seed={world.seed}",
        f"data.scenes.bundle={base}",
        *(f"maps.{kind}={world.out / f'rf-tiny-{kind}'}" for kind in ("depth", "saliency")),
        f"rfnet.text_encoder.tokenizer={reads}",
        f"trainer.compile={str(world.compile).lower()}",
    ]
    if world.steps:
        settings += [f"trainer.steps={world.steps}"]
    if (folder / CONFIG_NAME).exists():
        settings += [f"rfnet.init={folder}"]
    run = trainer.train(load_config(RECIPE, settings))
    shutil.copytree(run / "rfnet", folder, dirs_exist_ok=True)


@contextmanager
def _timed(world: World, part: str) -> Iterator[None]:
    """Add the minutes to what the part took before, also where it is cut short; it is done if it was not."""
    began, done = time.monotonic(), False
    try:
        yield
        done = True
    finally:
        found = _times(world)
        minutes = found.get(part, {}).get("minutes", 0.0) + (time.monotonic() - began) / 60
        write_atomically(
            world.state / TIMES, json.dumps(found | {part: {"minutes": minutes, "done": done}}, indent=1)
        )


def _times(world: World) -> dict[str, dict[str, float]]:
    file = world.state / TIMES
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    return found
