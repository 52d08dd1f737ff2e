"""Votes: what may be answered, their store on disk, and their files."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from rfft.errors import UserError
from rfft.feedback.vote_store import VoteStore, sole_writer
from rfft.feedback.votes import Picture, Vote, check_answer, read_rows, rows, write_rows


@pytest.mark.parametrize(
    ("task", "answer", "kept"),
    [
        ("labels", {"labels": ["available"], "more": 1}, {"labels": ["available"]}),
        (
            "labels",
            {"labels": ["size_mismatch", "space_mismatch"]},
            {"labels": ["space_mismatch", "size_mismatch"]},
        ),
        ("pairs", {"better": "same"}, {"better": "same"}),
        ("gsb", {"overall": "good", "realism": None}, {"overall": "good"}),
        ("scores", {"score": 4, "defects": ["floats"]}, {"score": 4, "defects": ["floats"]}),
    ],
)
def test_an_answer_is_kept_without_what_does_not_belong_to_it(task: str, answer: dict, kept: dict) -> None:
    assert check_answer(task, answer) == kept


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("labels", {"labels": []}),
        ("labels", {"labels": ["available", "size_mismatch"]}),
        ("labels", {"labels": "available"}),
        ("labels", {"labels": [["available"]]}),
        ("pairs", {"better": "both"}),
        ("gsb", {"alignment": "good"}),
        ("scores", {"score": 6, "defects": []}),
        ("scores", {"score": True, "defects": []}),
        ("scores", {"score": 3, "defects": ["<script>"]}),
    ],
)
def test_what_is_no_answer_is_refused(task: str, answer: dict) -> None:
    with pytest.raises(ValueError, match=r"one|list|missing"):
        check_answer(task, answer)


def test_a_store_gives_back_what_it_took_and_forgets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    picture = Picture(
        "p", tmp_path / "p.png", tmp_path / "o.png", "a 'cup'", "on wood", probabilities={"available": 0.5}
    )
    store = VoteStore(path, create=True)
    store.add_pictures([picture])
    first = store.add_vote(Vote("labels", "p", "anna", {"labels": ["available"]}, note="é", x=0.25, y=1.0))
    store.add_vote(Vote("labels", "p", "ben", {"labels": ["size_mismatch"]}))
    assert first.id is not None
    store.undo(first.id)
    store.close()

    again = VoteStore(path)
    assert again.pictures() == {"p": picture}
    assert [vote.rater for vote in again.votes()] == ["ben"]
    assert [vote.undone for vote in again.votes(undone=True)] == [True, False]
    kept = again.votes(undone=True)[0]
    assert (kept.answer, kept.note, kept.x, kept.y) == ({"labels": ["available"]}, "é", 0.25, 1.0)
    assert path.stat().st_mode & 0o077 == 0  # tokens are in it


def test_a_vote_from_elsewhere_is_taken_in_once(tmp_path: Path) -> None:
    store = VoteStore(tmp_path / "feedback.db", create=True)
    vote = Vote("pairs", "a", "anna", {"better": "left"}, right="b", origin="label-studio/7")
    assert store.add_vote(vote).id == 1
    assert store.add_vote(vote).id is None
    assert len(store.votes()) == 1


def test_what_is_no_store_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store of votes; `rfft review serve` makes one"):
        VoteStore(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("hello " * 200)
    with pytest.raises(UserError, match=r"text\.db: no store of votes"):
        VoteStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(UserError, match=r"other\.db: no store of votes"):
        VoteStore(tmp_path / "other.db", create=True)


def test_two_servers_on_one_store_refuse_each_other(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with sole_writer(path), pytest.raises(UserError, match="served by another process"), sole_writer(path):
        pass
    with sole_writer(tmp_path / "feedback.db"):
        pass


@pytest.mark.parametrize("name", ["votes.jsonl", "votes.parquet"])
def test_files_of_votes_have_one_row_a_vote(tmp_path: Path, name: str) -> None:
    picture = Picture("p", tmp_path / "p.png", caption="a cup", source="base")
    votes = [Vote("scores", "p", rater, {"score": 5, "defects": []}) for rater in ("anna", "ben")]
    write_rows(tmp_path / name, rows(votes, {"p": picture}))
    found = read_rows(tmp_path / name)
    assert [row["rater"] for row in found] == ["anna", "ben"]
    assert found[0]["answer"] == '{"score": 5, "defects": []}'
    assert (found[0]["left_path"], found[0]["caption"]) == (str(tmp_path / "p.png"), "a cup")
