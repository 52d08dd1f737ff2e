"""`rfft preference` and `rfft aesthetic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

preference = typer.Typer(help="Which of two pictures people like better: train it.", no_args_is_help=True)
aesthetic = typer.Typer(help="Scores from 1 to 5 and defects: train them.", no_args_is_help=True)
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [a.b=c]...", help="A YAML file or a shipped one, and settings to change."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Votes: feedback.db, what `rfft review export` wrote of it, Pick-a-Pic's columns."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")]
HeldOut = Annotated[Path, typer.Option(help="Votes that it was not trained on.")]


@preference.command("train")
def train_preference(settings: Settings = None, data: Data = None) -> None:
    """Learn which of two pictures people prefer; the same command again resumes a run that was cut off."""
    from rfft.preference.schema import PreferenceTrainingConfig

    _train(PreferenceTrainingConfig, settings or [], data)


@preference.command("evaluate")
def evaluate_preference(run: Run, data: HeldOut) -> None:
    """Measure a trained network on other pairs."""
    from rfft.preference.evaluate import evaluate
    from rfft.preference.schema import PreferenceTrainingConfig

    evaluate(PreferenceTrainingConfig, run, data)


@aesthetic.command("train")
def train_aesthetic(settings: Settings = None, data: Data = None) -> None:
    """Learn people's scores and defects; the same command again resumes a run that was cut off."""
    from rfft.preference.schema import AestheticTrainingConfig

    _train(AestheticTrainingConfig, settings or [], data)


@aesthetic.command("evaluate")
def evaluate_aesthetic(run: Run, data: HeldOut) -> None:
    """Measure a trained network on other scores."""
    from rfft.preference.evaluate import evaluate
    from rfft.preference.schema import AestheticTrainingConfig

    evaluate(AestheticTrainingConfig, run, data)


def _train(kind: Any, settings: list[str], data: Path | None) -> None:
    """Train by the config that comes first, or by the embedded one."""
    named = settings[:1] if settings and "=" not in settings[0] else []
    overrides = settings[len(named) :] + ([] if data is None else [f"data.train={data}"])
    from rfft.preference import trainer
    from rfft.preference.config import load_config

    trainer.train(load_config(kind, named[0] if named else "embedded", overrides))
