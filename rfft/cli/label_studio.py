"""`rfft review push` and `pull`: Label Studio, for teams that outgrow one page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rfft.errors import UserError

if TYPE_CHECKING:
    from rfft.review.label_studio import Server

KEY = "LABEL_STUDIO_API_KEY"
Url = Annotated[str, typer.Option("--label-studio", metavar="URL", help="The server: http://localhost:8080.")]
Project = Annotated[str, typer.Option(help="The project's name there.")]
TokenFile = Annotated[
    Path | None, typer.Option(help=f"File with the access token. Default: the variable {KEY}.")
]
Votes = Annotated[Path, typer.Option(help="Where votes are kept.")]


def push(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PICTURES|RUN...", help="Folders: of pictures, generated, labelled, or of runs."
        ),
    ],
    label_studio: Url,
    project: Project,
    task: Annotated[
        Literal["labels", "pairs", "scores"], typer.Option(help="What people are asked.")
    ] = "labels",
    store: Votes = Path("feedback.db"),
    per_picture: Annotated[int, typer.Option(min=1, help="Raters that each picture is given to.")] = 3,
    guide: Annotated[Path | None, typer.Option(help="Folder with your own guide: available.txt, ...")] = None,
    token_file: TokenFile = None,
) -> None:
    """Make a project in Label Studio, or add to it; what it asks about already is left."""
    from rfft.review import label_studio as studio

    new = studio.push(_server(label_studio, project, token_file), sources, store, task, per_picture, guide)
    typer.echo(f"{new} new tasks in project {project!r}; their pictures are in {store}")


def pull(
    label_studio: Url, project: Project, store: Votes = Path("feedback.db"), token_file: TokenFile = None
) -> None:
    """Take the annotations of all raters into the store, each of them once."""
    from rfft.review import label_studio as studio

    found = studio.pull(_server(label_studio, project, token_file), store)
    typer.echo(f"{found.new} new votes in {store}; {found.known} were there, {found.skipped} are no answers")


def _server(url: str, project: str, token_file: Path | None) -> Server:
    from rfft.review.label_studio import Server

    if not url.startswith(("http://", "https://")):
        raise UserError(f"--label-studio {url}: give the server's address, as in http://localhost:8080")
    return Server(url.rstrip("/"), _token(token_file), project)


def _token(file: Path | None) -> str:
    """Return the access token, which no message ever shows."""
    try:
        token = (file.read_text(encoding="utf-8") if file else os.environ.get(KEY, "")).strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--token-file {file}: cannot be read") from None
    if not token or not token.isascii() or len(token.split()) > 1:
        raise UserError(f"no access token: set {KEY}, or name a file that holds nothing else by --token-file")
    return token
