"""`rfft sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A YAML file with arms, or a shipped one: ablation, compare."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change in all arms.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Base config of all arms, in place of the file's.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share cores and GPUs.")] = 1,
    launcher: Annotated[
        str,
        typer.Option(help='Put before every run: "accelerate launch --config_file launch/multi_gpu.yaml".'),
    ] = "",
) -> None:
    """Run the arms of an experiment that are not finished, compare all; exit code 1 if one fails."""
    from rfft.config.sweep import plan_sweep

    plan = plan_sweep(file, config, overrides or [])  # before the slow imports: mistakes are found at once
    from rfft.training.sweep import sweep as run_sweep

    if run_sweep(plan, jobs, launcher):
        raise typer.Exit(1)
