"""What several commands take, and how they read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rfft.errors import UserError

if TYPE_CHECKING:
    from rfft.config.schema import Config

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped one: tiny.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change: trainer.steps=50.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run: runs/tiny.")]

Best = Annotated[
    bool, typer.Option("--best", help="The best checkpoint on the way, not what the run exported.")
]
Step = Annotated[int | None, typer.Option(min=1, help="The checkpoint of this step.")]


def load(path: Path, overrides: list[str] | None) -> Config:
    from rfft.config.load import load_config

    return load_config(path, overrides or [])


def config_of(run: Path) -> Path:
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: no config.yaml here, so no run; run folders are made by `rfft train`")
    return file
