"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
