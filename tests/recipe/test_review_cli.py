"""`rfft review`: the real command line, the real server on the loopback, votes that nothing loses."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from rfft.adworld.draw import draw_dataset
from rfft.feedback.folder import read_feedback
from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import Vote, read_rows
from rfft.review.guide import read_guide
from rfft.review.queue import Settings
from rfft.review.serve import gather
from rfft.review.server import create_app
from rfft.review.session import Review

ANSWER = {"labels": {"labels": ["available"]}, "scores": {"score": 4, "defects": []}}
NASTY = "<script>document.title='broken'</script>"


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `rfft generate` writes it: 12 pictures, one caption with a script tag in it."""
    folder = tmp_path_factory.mktemp("generated")
    rows = []
    for kind in ("images", "products"):
        (folder / kind).mkdir()
    for i in range(12):
        Image.new("RGB", (64, 64), (20 * i, 80, 160)).save(folder / f"images/{i}.png")
        Image.new("RGBA", (64, 64), (20 * i, 80, 160, 128)).save(folder / f"products/{i}.png")
        rows.append(
            {
                "id": str(i),
                "image": f"images/{i}.png",
                "product": f"products/{i}.png",
                "caption": NASTY if i == 0 else f"cup {i // 4}",
                "prompt": "a cup on wood",
                "probabilities": {"available": 0.9, "size_mismatch": 0.1},
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@contextmanager
def served(store: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The server's process and the lines that it printed."""
    command = [sys.executable, "-m", "rfft", "review", "serve", *map(str, arguments), "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert "http://" in lines[1], lines + [process.stdout.read()]
        yield process, [line.strip() for line in lines]
    finally:
        process.kill()
        process.wait()


@contextmanager
def rater(url: str, name: str = "anna") -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30) as client:
        assert client.post("/api/enter", json={"name": name}).status_code == 204
        yield client


def answer(
    client: httpx.Client | TestClient, given: dict | None = None, **more: object
) -> httpx.Response | None:
    """Answer what is asked now; None when there is nothing more."""
    question = client.get("/api/question").json()["question"]
    if question is None:
        return None
    left, *right = question["pictures"]
    body = {"left": left, "right": right[0] if right else None, "answer": given or ANSWER["labels"], **more}
    return client.post("/api/vote", json=body)


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_killed_server_has_lost_no_vote_that_it_answered(
    generated: Path, tmp_path: Path, kills: int
) -> None:
    """SIGKILL while votes come in; what was answered is in the store, and the next server goes on."""
    store, answered = tmp_path / "feedback.db", 0
    for number in range(kills):
        with served(store, generated) as (process, lines), rater(lines[1]) as client:
            answered += vote_until_killed(client, process)
        votes = VoteStore(store).votes()
        assert answered <= len(votes) <= answered + number + 1  # one may be written and not yet answered
    plain = [vote.left for vote in votes if vote.kind == "plain"]
    assert answered >= 2 and len(set(plain)) == len(plain)  # none was asked twice


def vote_until_killed(client: httpx.Client, process: subprocess.Popen[str]) -> int:
    """Return how many votes were answered; the server is killed while those after the second one are."""
    enough, answered = threading.Event(), 0

    def kill() -> None:
        enough.wait(30)
        os.kill(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with suppress(httpx.HTTPError):
        while (reply := answer(client)) is not None and reply.status_code == 200:
            answered += 1
            if answered == 2:
                enough.set()
    enough.set()
    killer.join()
    return answered


@contextmanager
def page(generated: Path, store: Path, tokens: bool = False) -> Iterator[tuple[TestClient, Review]]:
    """The application itself, as the server runs it, and what is behind it."""
    opened = VoteStore(store, create=True)
    settings = Settings("labels", raters=1, uncertain_first=True)
    review = Review(opened, settings, gather([generated], opened), read_guide("labels", None), tokens)
    with TestClient(create_app(review, ["localhost"]), base_url="http://localhost") as client:
        yield client, review
    opened.close()


def test_what_is_shown_and_what_is_refused(generated: Path, tmp_path: Path) -> None:
    """Headers, host names, paths, answers, undo and figures."""
    with page(generated, tmp_path / "feedback.db") as (client, _):
        assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
        assert client.get("/api/question").status_code == 401
        assert client.post("/api/enter", json={"name": ""}).status_code == 422
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400
        for path in ("/picture/..%2f..%2fetc%2fpasswd", "/static/../server.py", "/static/%2e%2e/server.py"):
            assert client.get(path).status_code in (401, 404)
        client.post("/api/enter", json={"name": "anna"})
        question = client.get("/api/question").json()
        assert question["question"]["caption"] == NASTY  # text as it is: the page sets it as text
        shown = question["question"]["pictures"][0]
        assert client.get(f"/picture/{shown}").headers["content-type"] == "image/png"
        assert client.get(f"/product/{shown}").status_code == 200
        assert client.get("/guide/0").content[:4] == b"\x89PNG"
        assert client.get("/picture/unknown").status_code == client.get("/guide/99").status_code == 404
        other = {"left": question["soon"][0], "answer": ANSWER["labels"]}
        assert client.post("/api/vote", json=other).status_code == 409  # not what was asked
        for given, more in (({"labels": ["available", "size_mismatch"]}, {}), (None, {"note": "x" * 2001})):
            refused = answer(client, given, **more)
            assert refused is not None and refused.status_code == 422
        assert client.get("/api/question").json()["question"]["pictures"] == [shown]
        answer(client, {"labels": ["size_mismatch"]}, note=NASTY, x=0.5, y=0.25, seconds=1.5)
        assert client.post("/api/undo", json={}).json()["question"]["pictures"] == [shown]
        while answer(client) is not None:
            pass
        figures = client.get("/api/figures").json()
        assert figures["votes"] == 12 and figures["rfnet"]["agree"]["share"] == 1.0


def test_who_has_no_token_stays_outside(generated: Path, tmp_path: Path) -> None:
    with page(generated, tmp_path / "feedback.db", tokens=True) as (client, review):
        token = review.enter("anna")
        assert client.post("/api/enter", json={"name": "anna"}).status_code == 403
        assert client.get("/", params={"token": "guess"}).status_code == 401
        assert client.get("/", params={"token": token}).url == "http://localhost/"  # no token in it
        assert client.get("/api/setup").json()["rater"] == "anna"


Run = Callable[..., tuple[int, str, str]]


def test_votes_in_other_forms(run_command: Run, tmp_path: Path) -> None:
    """AdWorld's scenes, labelled by two raters: figures, rows, RF1M's form, and its reader."""
    draw_dataset(tmp_path / "scenes", 4, seed=0, workers=1)
    store = VoteStore(tmp_path / "feedback.db", create=True)
    pictures = list(gather([tmp_path / "scenes"], store))
    for name in ("anna", "ben"):
        for i, picture in enumerate(pictures):
            label = "size_mismatch" if name == "ben" and i == 0 else "available"
            store.add_vote(Vote("labels", picture, name, {"labels": [label]}))
    store.add_vote(Vote("pairs", pictures[0], "anna", {"better": "right"}, right=pictures[1]))
    store.close()
    db = tmp_path / "feedback.db"

    code, out, _ = run_command("review", "report", db, "--out", tmp_path / "report")
    assert code == 0 and "Fleiss' kappa" in out
    assert json.loads((tmp_path / "report/report.json").read_text())["labels"]["votes"] == 8
    assert run_command("review", "export", db, tmp_path / "votes.parquet")[0] == 0
    assert len(read_rows(tmp_path / "votes.parquet")) == 9
    for how, count in (("majority", 4), ("votes", 8), ("mean", 4)):
        assert run_command("review", "export", db, tmp_path / how, "--form", "rf1m", "--labels", how)[0] == 0
        records = read_feedback(tmp_path / how)
        assert len(records) == count and records[0].load().product.shape == (64, 64, 4)
    soft = read_rows(tmp_path / "mean/soft.jsonl")
    assert soft[0]["shares"]["size_mismatch"] == 0.5 and soft[1]["shares"]["available"] == 1.0
    assert run_command("review", "export", db, tmp_path / "pairs.parquet", "--form", "pick-a-pic")[0] == 0
    (pair,) = read_rows(tmp_path / "pairs.parquet")
    assert (pair["label_0"], pair["label_1"], pair["best_image_uid"]) == (0.0, 1.0, pictures[1])
    assert pair["jpg_0"][:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("serve", "FOLDER/none"), "no such folder"),
        (("serve", "FOLDER"), "no pictures; give a folder of PNG"),
        (("serve", "GENERATED", "--host", "0.0.0.0"), "lets others in: name the --raters"),
        (("serve", "GENERATED", "--task", "gsb"), "gsb compares two runs"),
        (("serve", "GENERATED", "--round", "2"), "nothing to ask in round 2"),
        (("serve", "GENERATED", "--guide", "FOLDER/none"), "--guide FOLDER/none: no such folder"),
        (("serve", "GENERATED", "--host", "256.1.1.1", "--raters", "a"), "--host 256.1.1.1"),
        (("report", "FOLDER/none.db"), "no store of votes"),
        (("export", "FOLDER/none.db", "FOLDER/out.jsonl"), "no store of votes"),
    ],
)
def test_mistakes_are_one_line(
    run_command: Run, generated: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    def named(text: str) -> str:
        return text.replace("FOLDER", str(tmp_path)).replace("GENERATED", str(generated))

    store = ("--store", str(tmp_path / "feedback" / "f.db")) if arguments[0] == "serve" else ()
    code, _, err = run_command("review", *map(named, arguments), *store)
    assert code == 2 and named(line) in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_fifty_raters_at_once(tmp_path: Path) -> None:
    """Each answers 20 questions, half a second to one and a half apart; no error, and all votes are there."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (256, 256), (6 * i, 80, 160)).save(folder / f"{i}.png")
    seconds: list[float] = []

    def work(url: str, name: str) -> None:
        pauses = random.Random(name)  # people look at a picture, and not in step
        with rater(url, name) as client:
            for _ in range(20):
                time.sleep(pauses.uniform(0.5, 1.5))
                began = time.monotonic()
                reply = answer(client, seconds=1.0)
                assert reply is not None and reply.status_code == 200
                seconds.append(time.monotonic() - began)

    with served(tmp_path / "feedback.db", folder, "--per-picture", 50) as (_, lines):
        threads = [threading.Thread(target=work, args=(lines[1], f"rater {i}")) for i in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(VoteStore(tmp_path / "feedback.db").votes()) == len(seconds) == 1000
    late = sorted(seconds)[int(0.95 * len(seconds))]
    print(f"95 % of questions with their votes, two requests, within {1000 * late:.0f} ms")  # noqa: T201  a figure, no condition
