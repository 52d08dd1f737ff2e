"""The review page's server as a browser talks to it, and what its command refuses."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from rfft.feedback.vote_store import VoteStore, sole_writer
from rfft.review.guide import Entry
from rfft.review.queue import Settings
from rfft.review.serve import Address, gather
from rfft.review.server import create_app
from rfft.review.session import Review
from tests.asked import generated, picture, plain

Command = Callable[..., tuple[int, str, str]]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
LOCAL = "http://127.0.0.1"


class Page:
    """What a browser does: one client a rater, all on one store."""

    def __init__(self, folder: Path, source: Path, task: str = "labels", **settings: Any) -> None:
        self.store = VoteStore(folder / "feedback.db", create=True)
        with_tokens = settings.pop("with_tokens", False)
        pictures = gather([source], self.store, task)
        chosen = Settings(task, **{"measure_raters": False, **settings})
        self.review = Review(self.store, chosen, pictures, [Entry("x", "y", b"png")], with_tokens)
        self.app = create_app(self.review, Address().hosts)

    def client(self) -> TestClient:
        return TestClient(self.app, base_url=LOCAL)

    def rater(self, name: str) -> TestClient:
        client = self.client()
        assert client.post("/api/enter", json={"name": name}).status_code == 204
        return client


def question(client: TestClient) -> dict[str, Any]:
    return client.get("/api/question").json()


def vote(client: TestClient, shown: dict[str, Any], answer: dict[str, Any], **told: Any) -> Any:
    left, *right = shown["question"]["pictures"]
    body = {"left": left, "right": right[0] if right else None, "answer": answer, **told}
    return client.post("/api/vote", json=body)


def label_all(page: Page, name: str, *labels: str) -> None:
    client = page.rater(name)
    shown = question(client)
    while shown["question"]:
        shown = vote(client, shown, {"labels": list(labels)}).json()


# ---- the server ----


def test_a_vote_goes_from_the_page_to_the_store(tmp_path: Path) -> None:
    page = Page(tmp_path, plain(tmp_path / "ads", 2))
    anna = page.rater("  anna ")
    first = question(anna)
    assert question(anna) == first  # until it is answered
    told = {"note": EVIL, "x": 0.25, "y": 1.0, "seconds": 1.5}
    second = vote(anna, first, {"labels": ["size_mismatch", "space_mismatch"]}, **told).json()
    assert second["progress"] == {"mine": 1, "wanted": 6, "there": 1}
    assert second["question"]["pictures"] == first["soon"]
    (kept,) = page.store.votes()
    assert (kept.rater, kept.answer) == ("anna", {"labels": ["space_mismatch", "size_mismatch"]})
    assert (kept.note, kept.x, kept.y, kept.seconds) == (EVIL, 0.25, 1.0, 1.5)

    assert vote(anna, first, {"labels": ["available"]}).status_code == 409  # not asked any more
    assert vote(anna, second, {"labels": []}).status_code == 422
    assert vote(anna, second, {"labels": ["available"]}, note="x" * 2001).status_code == 422
    assert len(page.store.votes()) == 1
    assert anna.post("/api/undo").json()["question"] == first["question"]
    assert page.store.votes() == []
    assert anna.post("/api/undo").json()["question"] == first["question"]  # nothing is left to undo


def test_with_tokens_nobody_gets_in_without_one(tmp_path: Path) -> None:
    page = Page(tmp_path, plain(tmp_path / "ads", 1), with_tokens=True)
    token, name = page.review.enter("anna"), next(iter(page.review.pictures))
    stranger = page.client()
    for path in ("/api/question", "/api/figures", f"/picture/{name}", "/product/x", "/guide/0"):
        assert stranger.get(path).status_code == 401, path
    for path in ("/api/vote", "/api/undo", "/api/move-on"):
        assert stranger.post(path, json={"left": name, "answer": {}}).status_code == 401, path
    assert stranger.post("/api/enter", json={"name": "anna"}).status_code == 403
    assert stranger.get("/?token=guess").status_code == 401
    assert stranger.get("/api/setup").json()["needs_token"] is True

    anna = page.client()
    assert anna.get(f"/?token={token}").url == f"{LOCAL}/"  # the token does not stay in the address
    assert question(anna)["question"]["pictures"] == [name]
    assert anna.get(f"/picture/{name}").headers["content-type"] == "image/png"


def test_no_path_leads_out_and_no_other_site_asks(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("secret")
    page = Page(tmp_path, plain(tmp_path / "ads", 1))
    anna = page.rater("anna")
    for name in ("..%2Fsecret.png", "%2Fetc%2Fpasswd", "../secret.png", str(tmp_path / "secret.png")):
        for room in ("picture", "product", "static"):
            answer = anna.get(f"/{room}/{name}")
            assert answer.status_code in (404, 405) and "secret" not in answer.text.replace("secret.png", "")
    assert anna.get("/guide/1").status_code == 404
    assert anna.get("/", headers={"Host": "evil.example"}).status_code == 400  # a name that was rebound
    answer = anna.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    entered = page.client().post("/api/enter", json={"name": "b"}).headers["set-cookie"].lower()
    assert "httponly" in entered and "samesite=strict" in entered
    for name in ("", "   ", "x" * 61, "a\nb"):
        assert page.client().post("/api/enter", json={"name": name}).status_code == 422


def test_in_a_second_round_others_are_heard_after_the_vote(tmp_path: Path) -> None:
    source = plain(tmp_path / "ads", 2)
    first = Page(tmp_path, source, raters=2)
    label_all(first, "anna", "available")
    label_all(first, "ben", "size_mismatch")
    page = Page(tmp_path, source, round=2, raters=2)
    cleo = page.rater("cleo")
    shown = question(cleo)
    assert "size_mismatch" not in json.dumps(shown)
    said = vote(cleo, shown, {"labels": ["available"]}).json()["others"]
    assert [other["answer"]["labels"] for other in said] == [["available"], ["size_mismatch"]]


def test_good_same_bad_is_blinded_and_put_right(tmp_path: Path) -> None:
    for number, name in enumerate(("base", "tuned")):
        generated(tmp_path / name, 12, first=100 * number)
    store = VoteStore(tmp_path / "feedback.db", create=True)
    pictures = gather([tmp_path / "base", tmp_path / "tuned"], store, "gsb")
    page = Page(tmp_path, tmp_path / "base", "gsb")
    page.review = Review(store, Settings("gsb", raters=1), pictures)
    page.app = create_app(page.review, Address().hosts)
    anna = page.rater("anna")
    shown, sides = question(anna), set()
    while shown["question"]:
        assert "base" not in json.dumps(shown) and "tuned" not in json.dumps(shown)
        sources = [pictures[name].source for name in shown["question"]["pictures"]]
        sides.add(tuple(sources))
        side = "good" if sources[0] == "base" else "bad"  # anna likes the base, wherever it stands
        shown = vote(anna, shown, {"overall": side}).json()
    assert sides == {("base", "tuned"), ("tuned", "base")}
    found = anna.get("/api/figures").json()
    assert found["sources"] == ["base", "tuned"] and found["gsb"]["overall"]["score"] == 1.0


# ---- commands ----


def mistakes(folder: Path) -> dict[str, tuple[list[object], str]]:
    """Return what people get wrong: arguments, and a part of the line that tells them."""
    ads, linked, evil = plain(folder / "ads", 2), folder / "linked", generated(folder / "evil", 2)
    picture(folder / "out.png", 99)
    linked.mkdir()
    (linked / "x.png").symlink_to(folder / "out.png")
    rows = (evil / "manifest.jsonl").read_text()
    (evil / "manifest.jsonl").write_text(rows.replace("images/0000001.png", "../out.png"))
    (folder / "svg").mkdir()
    (folder / "svg/manifest.jsonl").write_text(rows.replace("images/0000000.png", "x.svg"))
    (folder / "svg/x.svg").write_text("<svg/>")
    picture(folder / "svg/products/0000000.png", 1)
    (folder / "damaged").mkdir()
    (folder / "damaged/manifest.jsonl").write_text('{"id": 1}\n')
    (folder / "guide").mkdir()
    picture(folder / "guide/best.png", 1)
    serve = ["review", "serve"]
    return {
        "a link": ([*serve, linked], "leads out of"),
        "a manifest that leads out": ([*serve, evil], "leads out of"),
        "no picture": ([*serve, folder / "svg"], "PNG, JPEG and WebP"),
        "a damaged manifest": ([*serve, folder / "damaged"], "manifest.jsonl:1: damaged"),
        "a strange guide": ([*serve, ads, "--guide", folder / "guide"], "best is no answer"),
        "one name twice": ([*serve, ads, plain(folder / "b/ads", 1)], "have one name"),
        "no votes": (["review", "report", "feedback.db"], "no vote in it yet"),
        "no labels": (["review", "export", "feedback.db", "x", "--form", "rf1m"], "no label has been given"),
        "no pairs": (["review", "export", "feedback.db", "x.parquet", "--form", "pick-a-pic"], "no pair"),
        "a strange name": (["review", "export", "feedback.db", "x.csv"], ".jsonl or .parquet"),
    }


def test_mistakes_are_one_line(run_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    VoteStore(tmp_path / "feedback.db", create=True).close()
    for name, (arguments, part) in mistakes(tmp_path).items():
        code, out, err = run_command(*arguments)
        assert (code, err.count("\n")) == (2, 1) and part in err, (name, out, err)


def test_what_is_taken_is_one_line(run_command: Command, tmp_path: Path) -> None:
    ads, store = plain(tmp_path / "ads", 1), tmp_path / "feedback.db"
    serve = ["review", "serve", ads, "--store", store]
    with sole_writer(store):
        code, _, err = run_command(*serve)
    assert (code, err.count("\n")) == (2, 1) and "served by another process" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run_command(*serve, "--port", taken.getsockname()[1])
    assert (code, err.count("\n")) == (2, 1) and "choose another" in err


def test_exports_without_what_they_need_are_one_line(run_command: Command, tmp_path: Path) -> None:
    page = Page(tmp_path, plain(tmp_path / "ads", 1))
    label_all(page, "anna", "available")
    store, out = tmp_path / "feedback.db", tmp_path / "rf1m"
    code, _, err = run_command("review", "export", store, out, "--form", "rf1m")
    assert (code, err.count("\n"), out.exists()) == (2, 1, False) and "product is not known" in err
