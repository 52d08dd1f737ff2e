"""What a trained network of opinions is worth on votes that it has not seen."""

from __future__ import annotations

from pathlib import Path

import torch

from rfft.errors import UserError
from rfft.evaluation.store import write_json
from rfft.models.pretrained import CONFIG_NAME
from rfft.preference.config import load_config
from rfft.preference.schema import AestheticTrainingConfig, PreferenceTrainingConfig
from rfft.preference.task import Figures, looker
from rfft.preference.trainer import make_task, measure, show
from rfft.rewards.opinion import AestheticNetwork, PreferenceNetwork
from rfft.utils.log import messages

HELD_OUT = "held_out.json"


def evaluate(
    kind: type[PreferenceTrainingConfig] | type[AestheticTrainingConfig], run: Path, data: Path
) -> Figures:
    """Measure a run's network on other votes, with the threshold of ties that its validation chose.

    Writes RUN/held_out.json.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no run of this training: give the folder that it left, runs/NAME")
    config = load_config(kind, run / "config.yaml")
    task = make_task(config)
    folder = run / task.name
    if not (folder / CONFIG_NAME).is_file():
        raise UserError(f"{folder}: no network yet: the training exports it at its first validation")
    network_kind = PreferenceNetwork if task.name == "preference" else AestheticNetwork
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network_kind.from_pretrained(folder).requires_grad_(False).to(device)
    opinions = task.read(data)
    items = task.items(opinions.examples, looker(network, opinions.pictures, True, device))
    tie = network.config.tie if isinstance(network, PreferenceNetwork) else None
    figures = {"data": str(data), **measure(task, network, items, device, tie)}
    write_json(run / HELD_OUT, figures)
    console = messages()
    show(figures, console)
    console.print(f"written: {run / HELD_OUT}", highlight=False, soft_wrap=True)
    return figures
