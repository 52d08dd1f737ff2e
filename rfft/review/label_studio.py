"""Pictures to a Label Studio server, and everybody's annotations back into the store of votes.

Both may be done again and again: a picture is asked about once, and an annotation is taken in once.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from rfft.errors import UserError, require
from rfft.feedback.vote_store import VoteStore, sole_writer
from rfft.feedback.votes import Picture, Vote
from rfft.review import label_studio_forms as forms
from rfft.review.guide import read_guide
from rfft.review.serve import gather

AT_ONCE = 50  # tasks made with one request
LARGE, LONGEST = 400_000, 1024  # bytes that make a picture too large, and pixels of its longer side then
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Server:
    """A Label Studio server, and the name of a project there."""

    url: str
    token: str = field(repr=False)
    project: str


@dataclass(frozen=True)
class Pulled:
    """What a pull has found."""

    new: int  # annotations taken in
    known: int  # there already
    skipped: int  # no answer to the question


def push(
    server: Server, sources: Sequence[Path], store: Path, task: str, raters: int, guide: Path | None = None
) -> int:
    """Make the project where there is none of its name, and tasks for what it does not ask yet.

    Returns how many tasks are new. The pictures are taken into the store, for annotations to refer to.
    Raises UserError for a server that is away or refuses the token, and for a project of another task.
    """
    with sole_writer(store), _client(server) as client:
        opened = VoteStore(store, create=True)
        pictures = gather(sources, opened)
        opened.close()
        asked = forms.questions(task, pictures)
        require(asked, "no product and prompt has two pictures to compare: give folders with several of each")
        project = _project(client, server.project)
        if project is not None and _task_of(client, project.id) != task:
            raise UserError(f"project {server.project!r} asks something else than {task}: name another")
        project = project or client.projects.create(
            title=server.project,
            label_config=forms.labeling_config(task),
            expert_instruction=forms.instructions(read_guide(task, guide)),
            show_instruction=True,
            show_collab_predictions=False,  # a form that is filled in already asks for agreement
            maximum_annotations=raters,
        )
        there = {found.data.get(forms.ABOUT) for found in client.tasks.list(project=project.id)}
        new = [question for question in asked if " ".join(question) not in there]
        for first in range(0, len(new), AT_ONCE):
            _add(client, project.id, task, new[first : first + AT_ONCE], pictures)
        return len(new)


def pull(server: Server, store: Path) -> Pulled:
    """Take the annotations of all raters into the store; those that are there already are left.

    One that was changed on the server since takes the place of what was taken in before, which is marked as
    undone. Raises UserError as `push` does.
    """
    with sole_writer(store), _client(server) as client:
        opened = VoteStore(store)
        project = _project(client, server.project)
        if project is None:
            raise UserError(f"{server.url}: no project {server.project!r}; `rfft review push` makes it")
        task = _task_of(client, project.id)
        if task is None:
            raise UserError(f"project {server.project!r} was not made by `rfft review push`: name another")
        known = {vote.origin for vote in opened.votes(undone=True)}
        counting = {_annotation(vote): vote.id for vote in opened.votes()}
        counts = {"new": 0, "known": 0, "skipped": 0}
        for vote in _votes(client, server.url, project.id, task):
            how = "skipped" if vote is None else "known" if vote.origin in known else "new"
            counts[how] += 1
            if vote is not None and how == "new":
                if (earlier := counting.get(_annotation(vote))) is not None:
                    opened.undo(earlier)
                opened.add_vote(vote)
        opened.close()
    return Pulled(**counts)


def _annotation(vote: Vote) -> str:
    """Return which annotation a vote comes from, whenever it was changed."""
    return vote.origin.rpartition("@")[0] or f"vote {vote.id}"


def _votes(client: Any, url: str, project: int, task: str) -> Iterator[Vote | None]:
    """Yield every annotation as a vote; None for one that is no answer."""
    names = {user.id: user.email or user.username for user in client.users.list()}
    for found in client.tasks.list(project=project, fields="all"):
        for annotation in map(_plain, found.annotations or []):
            user = annotation.get("completed_by")
            user = user.get("id") if isinstance(user, Mapping) else user
            origin = f"{url}/annotations/{annotation['id']}@{annotation.get('updated_at')}"
            try:
                about = found.data[forms.ABOUT]
                vote = forms.vote_of(task, about, annotation, names.get(user, f"user {user}"), origin)
            except (ValueError, KeyError, TypeError):
                yield None
            else:
                yield None if annotation.get("was_cancelled") else vote


def _plain(annotation: Any) -> dict[str, Any]:
    return dict(annotation) if isinstance(annotation, Mapping) else annotation.model_dump(mode="json")


def _project(client: Any, name: str) -> Any | None:
    return next((project for project in client.projects.list() if project.title == name), None)


def _task_of(client: Any, project: int) -> str | None:
    """Return what a project asks, read from its labeling config; None if it is none of ours."""
    config = client.projects.get(project).label_config
    return next((task for task in forms.TASKS if forms.labeling_config(task) == config), None)


def _add(
    client: Any, project: int, task: str, questions: Sequence[Sequence[str]], pictures: Mapping[str, Picture]
) -> None:
    """Make the tasks of some questions, with their pictures inside."""
    urls = {id: _data_url(pictures[id].path) for question in questions for id in question}
    client.projects.import_tasks(
        project,
        request=[
            {
                "data": forms.task_data(question, pictures, urls),
                "predictions": forms.predictions(task, pictures[question[0]]),
            }
            for question in questions
        ],
    )


def _data_url(path: Path) -> str:
    """Return a picture as a data: URL, a large one as a JPEG.

    Label Studio takes uploads of files only in projects that show nothing beside one picture.
    """
    data = path.read_bytes()
    kind = Image.open(BytesIO(data)).get_format_mimetype()
    if len(data) > LARGE:
        picture, smaller = Image.open(BytesIO(data)).convert("RGB"), BytesIO()
        picture.thumbnail((LONGEST, LONGEST))
        picture.save(smaller, "JPEG", quality=90)
        data, kind = smaller.getvalue(), "image/jpeg"
    return f"data:{kind};base64,{b64encode(data).decode()}"


@contextmanager
def _client(server: Server) -> Iterator[Any]:
    """Give a client of the server; what it refuses, and that it is away, is a UserError of one line."""
    if not find_spec("label_studio_sdk"):
        raise UserError("label-studio-sdk is not installed: pip install 'rfft[label-studio]'")
    import httpx
    from label_studio_sdk import LabelStudio
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield LabelStudio(base_url=server.url, api_key=server.token, timeout=TIMEOUT)
    except ApiError as error:
        raise UserError(_explained(server.url, error.status_code, error.body)) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"{server.url}: no Label Studio answers there ({error}); check --label-studio"
        ) from None


def _explained(url: str, status: int | None, body: Any) -> str:
    if status in (401, 403):
        return (
            f"{url} refuses the token: set LABEL_STUDIO_API_KEY, or --token-file, to the one shown under "
            "Account & Settings"
        )
    return f"{url} answers {status}: {' '.join(str(body).split())[:200]}"
