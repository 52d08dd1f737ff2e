"""Load a config: from a file with overrides for the command line, from a mapping for Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from rfft.config import read
from rfft.config.checks import check_config, check_limits, check_run
from rfft.config.presets import RENAMED, preset
from rfft.config.schema import Config
from rfft.errors import UserError, require

Settings = TypeVar("Settings")

# A run may be continued with other values of these; any other difference makes it another run.
MAY_CHANGE = (
    *("run.out", "trainer.steps", "trainer.max_minutes", "trainer.checkpoint_every", "trainer.keep"),
    *("trainer.sample_every", "trainer.profile", "trainer.timeout_minutes"),
    *("data.on_error", "evaluate", "tracker"),
    # For another number of processes, or less memory; the maths stay, see docs/faults.md.
    *("trainer.batch_size", "trainer.accumulation", "rollout.shared_draw"),
    "rollout.compile",
    *("trainer.decode_batch", "model.gradient_checkpointing"),
    *("data.cache", "data.cache_gb", "data.workers"),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, complete and check the config of a training by RFFT.

    `path` is a YAML file, or the name of a shipped config ("tiny"); `overrides` are settings of the form
    `a.b=c`. Every mistake is a UserError of one line that names the thing and the fix.
    """
    require(not is_rfnet(path), f"{path}: a config of RFNet's training; run: rfft rfnet train {path}")
    path = find_config(path)
    config = read.read_file(Config, path, overrides, NAMED_OBJECTIVE)
    return _named(config, path.stem)


def config_from(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Return the default config changed by a mapping, {"trainer": {"steps": 2}}, and checked like a file.

    Keys may be dotted, too: {"trainer.steps": 2}. Without a run.name the run is called "run".
    """
    return _named(read.read_mapping(Config, settings, overrides, NAMED_OBJECTIVE), "run")


def load_as(
    schema: type[Settings], check: Callable[[Settings], None], path: str | Path, overrides: Sequence[str]
) -> Settings:
    """Read a config of any schema that has a `run` and an `optimizer`; `check` refuses what is wrong."""
    path = find_config(path)
    return _checked(read.read_file(schema, path, overrides), check, name=path.stem)


def find_config(path: str | Path, kind: str = "") -> Path:
    """Return the file itself, or a shipped one by its name: configs/NAME.yaml, or configs/KIND/NAME.yaml.

    Shipped ones lie beside the sources or inside the installed package.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():  # in runs/, `tiny` is a folder
        return path
    here = Path(__file__).parent.parent
    for folder in (here / "configs", here.parent / "configs"):
        candidate = folder / kind / f"{path.stem}.yaml"
        if len(path.parts) <= 2 and path.parent.name in ("", "configs") and candidate.exists():
            return candidate
    raise UserError(f"{path}: no such config file")


def is_rfnet(path: str | Path) -> bool:
    """Tell whether a config is one of `rfft rfnet train`, by the groups that only this has."""
    return not {"rfnet", "maps"}.isdisjoint(read.groups(find_config(path)))


def read_resolved(file: Path) -> dict[str, Any]:
    """Return the config.yaml of a run's folder as it stands there; a UserError if somebody has broken it."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: not the config that the run wrote; bring that back, or name another run")
    return found


def to_yaml(config: object) -> str:
    """Return the complete config as YAML, which `load_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _preset_of(config: Config) -> Mapping[str, Any]:
    return preset(config.objective.use, config.rollout.steps)


NAMED_OBJECTIVE = read.Preset("objective.use", "objective.options", _preset_of)


def _named(config: Config, name: str) -> Config:
    """Check a config whose objective may have a name of earlier versions."""
    config.objective.use = RENAMED.get(config.objective.use, config.objective.use)
    return _checked(config, check_config, name)


def _checked(config: Any, check: Callable[[Any], None], name: str) -> Any:
    """Give the run its name if it has none, and check the config."""
    config.run.name = config.run.name or name
    check_limits(config)
    check_run(config)
    check(config)
    return config
