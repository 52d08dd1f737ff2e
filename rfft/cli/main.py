"""The command line: every command parses, loads the config and calls one function.

Imports stay inside the commands, so that help is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from rfft import __version__
from rfft.cli import adworld, benchmark, data, pictures, preference, products, review, rfnet, runs, sweep
from rfft.errors import Interrupted, ProcessLost, UserError, disk_problem

COMMANDS = (  # in the order of the help
    runs.train,
    runs.check,
    runs.evaluate,
    pictures.generate,
    pictures.score,
    runs.export,
    runs.report,
    runs.compare,
    sweep.sweep,
    benchmark.benchmark,
)
GROUPS = {
    "adworld": adworld.app,
    "aesthetic": preference.aesthetic,
    "data": data.app,
    "preference": preference.preference,
    "products": products.app,
    "review": review.app,
    "rfnet": rfnet.app,
}

app = typer.Typer(
    help="Fine-tune advertising-image generators on human feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rfft {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _hush_libraries() -> None:
    """Silence libraries' notes on optional packages and coming releases; their errors show."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)


def main() -> None:
    """Run a command; a mistake of the user's ends it with one line and exit code 2."""
    _hush_libraries()
    try:
        app()
    except UserError as error:
        typer.echo("rfft: " + str(error).replace("\n", " "), err=True)
        sys.exit(2)
    except Interrupted as stop:
        typer.echo(f"rfft: {stop}", err=True)
        sys.exit(75)
    except ProcessLost as loss:
        typer.echo(f"rfft: {loss}", err=True)
        sys.exit(76)
    except Exception as error:
        if not (problem := _explain(error)):
            raise
        typer.echo(f"rfft: {problem}", err=True)
        sys.exit(2)


def _explain(error: Exception) -> str | None:
    """Return one line for what the machine lacks, disk or memory; None for a mistake of the program's."""
    if problem := disk_problem(error):
        return problem
    if not isinstance(error, (MemoryError, RuntimeError)):
        return None
    from rfft.utils.faults import memory_problem

    problem = memory_problem(error)
    return problem and f"{problem}. Try fewer or smaller pictures at a time"
