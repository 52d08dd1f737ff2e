"""The embedded world's networks, trained one by one or all from nothing, and what each of them took."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from accelerate.state import AcceleratorState

from rfft.models.pretrained import CONFIG_NAME
from rfft.rfnet import trainer
from rfft.rfnet.config import load_config
from rfft.rfnet.evaluate import EXPORT
from rfft.training.pretrain import assess, calibrate, rfnet
from rfft.training.pretrain.fit import PretrainRun, console
from rfft.utils.log import write_atomically
from rfft.utils.signals import StopSignals

PARTS = ("vae", "base", "depth", "saliency", "rfnet", "judge", "probe")  # each builds on some before it
RECIPE = "rfnet_embedded"
TIMES = "minutes.json"  # in the folder of the state: what each part took until now, and whether it is done


def train_all(run: PretrainRun) -> None:
    """Train every part in its order, calibrate RFNet and judge, and measure all; the same call goes on."""
    work: dict[str, Callable[[], None]] = {part: partial(train_part, run, part) for part in PARTS}
    work |= {
        "calibrate": partial(calibrate.calibrate, run.out),
        "assess": partial(assess.assess, run.out),
        "stress": partial(assess.assess_stress, run.out),
    }
    for part, do in work.items():
        if not _times(run).get(part, {}).get("done"):
            console.print(f"== {part}")
            # Accelerate has one precision for the whole process, and the parts have different ones.
            AcceleratorState._reset_state(reset_partial_state=True)
            with _timed(run, part):
                do()
    for part, took in _times(run).items():
        console.print(f"{part}: {took['minutes']:.1f} minutes")
    console.print(f"together: {sum(took['minutes'] for took in _times(run).values()):.1f} minutes")


def train_part(run: PretrainRun, part: str) -> None:
    """Train one of PARTS, or "flow": from the weights that it has in run.out, or from nothing."""
    if part == "rfnet":
        _train_rfnet(run)
        return
    module = importlib.import_module(f"rfft.training.pretrain.{part}")
    with StopSignals() as signals:
        module.train(replace(run, steps=run.steps or module.STEPS, signals=signals))


def _train_rfnet(run: PretrainRun) -> None:
    run.builds_on("base", "depth", "saliency")
    folder, base = run.out / rfnet.NAME, run.out / "rf-tiny"
    reads = folder if (folder / "tokenizer.json").exists() else base / "tokenizer"
    settings = [
        f"run.out={run.state}",
        "run.name=rfnet",
        f"run.seed={run.seed}",
        f"data.scenes.bundle={base}",
        *(f"maps.{kind}={run.out / f'rf-tiny-{kind}'}" for kind in ("depth", "saliency")),
        f"rfnet.text_encoder.tokenizer={reads}",
        f"trainer.compile={str(run.compile).lower()}",
    ]
    if run.steps:
        settings += [f"trainer.steps={run.steps}"]
    if (folder / CONFIG_NAME).exists():
        settings += [f"rfnet.init={folder}"]
    trained = trainer.train(load_config(RECIPE, settings))
    shutil.copytree(trained / EXPORT, folder, dirs_exist_ok=True)


@contextmanager
def _timed(run: PretrainRun, part: str) -> Iterator[None]:
    """Add the minutes to what the part took before, also where it is cut short; it is done if it was not."""
    began, done = time.monotonic(), False
    try:
        yield
        done = True
    finally:
        found = _times(run)
        minutes = found.get(part, {}).get("minutes", 0.0) + (time.monotonic() - began) / 60
        write_atomically(
            run.state / TIMES, json.dumps(found | {part: {"minutes": minutes, "done": done}}, indent=1)
        )


def _times(run: PretrainRun) -> dict[str, dict[str, float]]:
    file = run.state / TIMES
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    return found
