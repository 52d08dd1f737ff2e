"""A sweep: arms of one base config, each with settings and seeds, read from YAML and checked before it runs.

config: configs/tiny.yaml        # of all arms: a file, or the name of a shipped one
settings: [trainer.steps=50]     # of all arms, as on the command line
seeds: [0, 1, 2]                 # a run for each; left out, one run with the config's own seed
arms:
  - name: kl
    settings: [objective.regularizer=kl, objective.beta=100]
  - name: recurrent
    train: false                 # the base model alone is evaluated
    settings: [evaluate.only_accepted=true]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rfft.config import read
from rfft.config.checks import FOLDER_NAME
from rfft.config.load import find_config, load_config
from rfft.config.schema import Config, setting
from rfft.errors import UserError, require

TAKEN = ("logs", "claims")  # folders beside those of the runs
OWN = ("run.name", "run.out", "run.seed")  # settings that a sweep gives to each run


@dataclass
class ArmConfig:
    name: str = ""  # the run's; with seeds NAME-seed0 and so on
    settings: list[str] = setting([])  # of this arm alone: objective.beta=0.1
    seeds: list[int] = setting([])  # in place of the sweep's
    train: bool = True  # false: only evaluate the base model, by these settings


@dataclass
class SweepConfig:
    config: str = ""  # base of all arms: a file, or the name of a shipped one
    out: str = ""  # folder of the runs, their logs and the comparison; empty: runs/NAME of this file
    settings: list[str] = setting([])  # of all arms
    seeds: list[int] = setting([])
    arms: list[ArmConfig] = field(default_factory=list)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep: `rfft train FILE OVERRIDES...`, or `rfft evaluate` of the base model alone."""

    name: str
    train: bool
    file: Path
    overrides: tuple[str, ...]
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run.out) / self.name


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, each with a config that has been checked."""

    name: str
    out: Path
    runs: tuple[PlannedRun, ...]


def plan_sweep(file: Path, base: Path | None = None, overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep's file and check every run's config; a UserError names the arm that is wrong.

    `file` may be the name of a shipped one ("ablation"). `base` takes the place of its config, and
    `overrides` come after the settings of every arm.
    """
    file = find_config(file, "sweeps")
    sweep = read.read_file(SweepConfig, file)
    require(sweep.arms, f"{file}: a sweep needs arms: a list, each with a name and settings")
    require(base or sweep.config, f"{file}: a sweep needs a base: config: configs/tiny.yaml")
    out = Path(sweep.out or Path("runs") / file.stem)
    try:
        source = find_config(base or sweep.config)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    runs: list[PlannedRun] = []
    for arm in sweep.arms:
        settings = [f"tracker.group={file.stem}", *sweep.settings, *arm.settings, *overrides]
        try:
            _check_arm(arm, settings)
            runs += [
                _plan_run(name, arm.train, source, (*settings, f"run.out={out}", *own))
                for name, own in _seeded(arm, sweep.seeds)
            ]
        except UserError as error:
            raise UserError(f"{file}: arm {arm.name or 'without a name'}: {error}") from None
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"{file}: two runs are called {', '.join(twice)}: give each arm a name of its own")
    return Plan(file.stem, out, tuple(runs))


def _seeded(arm: ArmConfig, seeds: Sequence[int]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and settings of every run of an arm; an evaluation alone knows no seed, its noise is fixed."""
    chosen = (arm.seeds or seeds) if arm.train else ()
    if not chosen:
        return [(arm.name, (f"run.name={arm.name}",))]
    names = {f"{arm.name}-seed{seed}": seed for seed in chosen}
    return [(name, (f"run.name={name}", f"run.seed={seed}")) for name, seed in names.items()]


def _plan_run(name: str, train: bool, source: Path, overrides: tuple[str, ...]) -> PlannedRun:
    config = load_config(source, overrides)
    require(config.evaluate.enabled, "a sweep ends in a comparison: leave evaluate.enabled=true")
    return PlannedRun(name, train, source, overrides, config)


def _check_arm(arm: ArmConfig, settings: Sequence[str]) -> None:
    require(
        re.fullmatch(FOLDER_NAME, arm.name) and arm.name not in TAKEN,
        "the name must be fit for a folder: letters, digits, '-', '_' and '.'; 'logs' and 'claims' are taken",
    )
    own = [key for key in (item.partition("=")[0] for item in settings) if key in OWN]
    require(not own, f"{', '.join(own)}: the sweep itself gives every run its name, folder and seed")
