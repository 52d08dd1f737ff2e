"""`rfft benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfft.errors import require


def benchmark(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A YAML file with methods, or a shipped one: core, smoke.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change in all methods.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs and results. Default: runs/PLAN.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share cores and GPUs.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This method alone; may be given several times.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print runs, steps, FLOPs and hours, and run nothing.")
    ] = False,
) -> None:
    """Compare methods at equal cost; resumes, and may be started several times on one folder."""
    from rfft.config.benchmark import plan_benchmark

    planned = plan_benchmark(plan, out, overrides or [])  # before the slow imports
    known = [method.name for method in planned.methods]
    for name in only or []:
        require(name in known, f"--only {name}: no such method; there are {', '.join(known)}")
    if plan_only:
        from rfft.training.benchmark_plan import describe

        for line in describe(planned):
            typer.echo(line)
        return
    from rfft.training.benchmark import benchmark as run

    if run(planned, jobs, only or []):
        raise typer.Exit(1)
