"""The settings that exported weights are painted with: written beside them, read by `rfft generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from rfft.config.load import load_config
from rfft.config.schema import Config, ModelConfig
from rfft.errors import UserError

SETTINGS_FILE = "rfft.yaml"  # lies beside exported weights
DEFAULT_CONFIG = "tiny"
# What weights are painted with as they were trained. Nothing that tells where a run's data lies.
CARRIED = {
    "model": None,
    "reward": None,
    "rollout": None,
    "objective": None,
    "data": ("image_size", "buckets", "image_scale", "keep_location", "canny_low", "canny_high"),
    "trainer": ("mixed_precision",),
    "evaluate": ("max_attempts",),
}


def write_settings(file: Path, config: Config, format: str) -> None:
    """Write the settings of a run that `rfft generate` needs for its weights, exported in `format`, as YAML.

    `rfft generate` reads them where no --config is given. A merged export has its ControlNet inside.
    """
    settings = asdict(config)
    carried = {
        group: {name: settings[group][name] for name in names or settings[group]}
        for group, names in CARRIED.items()
    }
    if format == "merged":
        carried["model"] |= {"controlnet": None}
    file.write_text(yaml.safe_dump(carried, sort_keys=False), encoding="utf-8")


def config_for(
    config: str | Path | None, model: str | None, lora: Path | None, overrides: Sequence[str] = ()
) -> Config:
    """Return the config to paint with, its bundle replaced by `model` if that is given.

    Without a config, the settings that `rfft export` wrote beside the LoRA or the merged model count; those
    of the embedded generator only where nothing else is named. Raises UserError where weights come without
    settings: size, guidance and RFNet of another base would silently be wrong.
    """
    found = load_config(config or _carried(model, lora) or DEFAULT_CONFIG, overrides)
    found.model.bundle = model or found.model.bundle
    return found


def _carried(model: str | None, lora: Path | None) -> Path | None:
    """Return the settings file beside the weights; None if no weights but the embedded ones are named."""
    for option, weights in (("--lora", lora), ("--model", model)):
        if weights is None or weights == ModelConfig.bundle:
            continue
        if (file := Path(weights) / SETTINGS_FILE).is_file():
            return file
        raise UserError(
            f"{option} {weights}: without a {SETTINGS_FILE} beside these weights, their size, guidance and "
            "RFNet are not known; name their config with --config, RUN/config.yaml for example"
        )
    return None
