"""`rfft review correlate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def correlate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluated runs.")],
    store: Annotated[Path, typer.Option(help="Votes on their pictures.")] = Path("feedback.db"),
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Say which metrics rank models as people do: Spearman's correlation, with intervals."""
    from rfft.evaluation.store import write_json
    from rfft.feedback.vote_store import VoteStore
    from rfft.review import correlate as correlating

    opened = VoteStore(store)
    found = correlating.correlate(runs, opened.votes(), opened.pictures())
    typer.echo(correlating.to_markdown(found))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, found)
