"""Pictures to a real Label Studio server on loopback and annotations back, through the real command line."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import Vote

pytest.importorskip("label_studio_sdk", reason="pip install 'rfft[label-studio]'")
PATIENCE = 900  # seconds for the server's own database, on a busy machine
Run = Callable[..., tuple[int, str, str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and token of a new server with a database of its own."""
    program = os.environ.get("LABEL_STUDIO")
    if not program:
        pytest.skip("the variable LABEL_STUDIO does not name label-studio")
    port, token, folder = free_port(), secrets.token_hex(20), tmp_path_factory.mktemp("label-studio")
    user = "--username", "rater@example.com", "--password", secrets.token_hex(8), "--user-token", token
    where = "--data-dir", str(folder), "--port", str(port), "--internal-host", "127.0.0.1"
    flags = "--no-browser", "--enable-legacy-api-token", "--log-level", "WARNING"
    quiet = {"COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "False"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "start", *user, *where, *flags], stdout=log, stderr=log, env=os.environ | quiet
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}", token
        finally:
            process.terminate()
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        assert process.poll() is None, "label-studio ended"
        try:
            urlopen(url, timeout=10).close()
        except (URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError("label-studio does not start")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures of one product and prompt."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def choice(name: str, to: str, *values: str) -> dict[str, Any]:
    return {"from_name": name, "to_name": to, "type": "choices", "value": {"choices": list(values)}}


@pytest.mark.label_studio
def test_labels_there_and_back(
    server: tuple[str, str], pictures: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from label_studio_sdk import LabelStudio

    url, token = server
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    store = tmp_path / "feedback.db"
    same = "--label-studio", url, "--project", "cups", "--store", str(store)
    push, pull = ("review", "push", str(pictures), *same), ("review", "pull", *same)
    for new in (3, 0):  # a second push adds nothing
        code, told, error = run_command(*push)
        assert (code, told.split()[0]) == (0, str(new)), error
    assert run_command(*push, "--task", "scores")[0] == 2

    client = LabelStudio(base_url=url, api_key=token)
    (project,) = (project for project in client.projects.list() if project.title == "cups")
    assert project.show_instruction and "<b>size_mismatch</b>" in str(project.expert_instruction)
    tasks = list(client.tasks.list(project=project.id))
    picture = b64decode(tasks[0].data["image"].removeprefix("data:image/png;base64,"))
    assert picture in {file.read_bytes() for file in pictures.iterdir()}
    client.annotations.create(
        tasks[0].id, result=[choice("labels", "image", "size_mismatch", "space_mismatch")], lead_time=1.5
    )
    client.annotations.create(tasks[0].id, result=[choice("labels", "image", "available")])
    client.annotations.create(
        tasks[1].id, result=[choice("labels", "image", "available", "size_mismatch")]
    )  # none
    for new, known in ((2, 0), (0, 2)):
        code, told, error = run_command(*pull)
        assert code == 0 and told.startswith(f"{new} new votes"), error
        assert f"{known} were there, 1 are no answers" in told
    votes = VoteStore(store).votes("labels")
    assert [vote.answer["labels"] for vote in votes] == [["space_mismatch", "size_mismatch"], ["available"]]
    assert {vote.left for vote in votes} == {tasks[0].data["rfft"]}
    assert {vote.rater for vote in votes} == {"rater@example.com"} and votes[0].seconds == 1.5

    changed = list(client.annotations.list(tasks[0].id))[0]
    client.annotations.update(changed.id, result=[choice("labels", "image", "indistinctiveness")])
    assert run_command(*pull)[1].startswith("1 new votes")
    opened = VoteStore(store)
    assert len(opened.votes()) == 2 and len(opened.votes(undone=True)) == 3

    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(pictures / "3.png")
    assert run_command(*push)[1].startswith("1 new tasks")


@pytest.mark.label_studio
@pytest.mark.parametrize("task", ["pairs", "scores"])
def test_pairs_and_scores(
    server: tuple[str, str],
    pictures: Path,
    run_command: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    task: str,
) -> None:
    from label_studio_sdk import LabelStudio

    url, token = server
    (tmp_path / "token").write_text(token + "\n")
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    store = tmp_path / "feedback.db"
    same = *("--label-studio", url, "--project", task), *("--store", str(store))
    same = *same, "--token-file", str(tmp_path / "token")
    code, told, error = run_command("review", "push", str(pictures), *same, "--task", task)
    assert code == 0 and told.startswith("2 new" if task == "pairs" else "3 new"), error
    client = LabelStudio(base_url=url, api_key=token)
    (project,) = (project for project in client.projects.list() if project.title == task)
    first = next(iter(client.tasks.list(project=project.id)))
    rating = {"from_name": "score", "to_name": "image", "type": "rating", "value": {"rating": 4}}
    results = {"pairs": [choice("better", "left", "right")], "scores": [rating]}
    client.annotations.create(first.id, result=results[task])
    code, told, error = run_command("review", "pull", *same)
    assert code == 0 and told.startswith("1 new votes"), error
    (vote,) = VoteStore(store).votes()
    answers = {"pairs": {"better": "right"}, "scores": {"score": 4, "defects": []}}
    assert (vote.task, vote.answer) == (task, answers[task])
    assert vote.right is None if task == "scores" else f"{vote.left} {vote.right}" == first.data["rfft"]


@pytest.mark.label_studio
def test_a_refused_token_is_one_line_without_it(
    server: tuple[str, str], pictures: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    same = "--label-studio", server[0], "--project", "cups", "--store", str(tmp_path / "feedback.db")
    VoteStore(tmp_path / "feedback.db", create=True).add_vote(
        Vote("labels", "a", "anna", {"labels": ["available"]})
    )
    for command in (("push", str(pictures)), ("pull",)):
        code, _, told = run_command("review", *command, *same)
        assert code == 2 and "refuses the token" in told and told.count("\n") == 1 and "000" not in told


def test_a_server_that_is_away_is_one_line(
    pictures: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
    url = f"http://127.0.0.1:{free_port()}"
    same = "--label-studio", url, "--project", "cups", "--store", str(tmp_path / "feedback.db")
    code, _, told = run_command("review", "push", str(pictures), *same)
    assert code == 2 and f"{url}: no Label Studio answers there" in told and told.count("\n") == 1, told
