"""The base model's evaluation taken from another folder, instead of painting the same pictures again."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rfft.config.load import flatten, read_resolved
from rfft.config.schema import Config
from rfft.errors import UserError, require
from rfft.evaluation import store

# What decides about the base model's pictures and verdicts on them, beside the settings of a grid.
SAME = ("model.family", "model.embedded_guidance", "reward.depth", "reward.saliency")


def take_base(source: Path, folder: Path, config: Config, grid: dict[str, Any]) -> None:
    """Bring the base model's metrics and pictures from one folder into another one.

    grid: of describe_grid(), for `folder`. Raises a UserError where the source has none, or those of another
    grid or base model.
    """
    known, file = store.read_json(source / store.EVALUATION), source / "config.yaml"
    require(
        "base" in known and file.is_file(),
        f"{source}: no evaluation of a base model; make one with `rfft evaluate CONFIG --out {source}`",
    )
    theirs, ours = flatten(read_resolved(file)), flatten(asdict(config))
    settings = {name: (theirs.get(name), ours.get(name)) for name in SAME}
    settings |= {name: (known["grid"].get(name), value) for name, value in grid["grid"].items()}
    for name, (before, now) in settings.items():
        if before != now:
            raise UserError(f"{source} was evaluated with {name}={before}, not {now}: leave out --base")
    require(
        known["cells"] == grid["cells"],
        f"{source} was evaluated on other products or prompts: leave out --base",
    )
    entry = {name: known[name] for name in ("grid", "intervals", "cells", "base")}
    for part, pattern in (("replicates", "base.safetensors"), ("samples", "base*.png")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for found in (source / part).glob(pattern):
            shutil.copyfile(found, folder / part / found.name)
    store.write_json(folder / store.EVALUATION, store.read_json(folder / store.EVALUATION) | entry)
