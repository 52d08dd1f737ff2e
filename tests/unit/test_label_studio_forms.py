"""Label Studio's forms: what is asked, and annotations as votes; the server itself is tests/recipe/'s."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from rfft.feedback.votes import ANSWERS, DEFECTS, Picture
from rfft.review.guide import Entry
from rfft.review.label_studio_forms import (
    TASKS,
    instructions,
    labeling_config,
    predictions,
    questions,
    task_data,
    vote_of,
)

PLACE = {"from_name": "place", "type": "keypointlabels", "value": {"x": 25.0, "y": 50.0}}
NOTE = {"from_name": "note", "type": "textarea", "value": {"text": ["it <b>floats</b>", "a lot"]}}


def choices(name: str, *values: str) -> dict:
    return {"from_name": name, "type": "choices", "value": {"choices": list(values)}}


@pytest.mark.parametrize("task", TASKS)
def test_a_config_shows_all_that_a_task_has_and_offers_all_answers(task: str) -> None:
    root = ElementTree.fromstring(labeling_config(task))
    pictures = {"a": Picture("a", Path("a.png"), group="g"), "b": Picture("b", Path("b.png"), group="g")}
    data = task_data(questions(task, pictures)[0], pictures, {"a": "/a", "b": "/b"})
    shown = {tag.get("value", "")[1:] for tag in root.iter() if tag.get("value", "").startswith("$")}
    assert shown == set(data) - {"rfft"}
    offered = [tag.get("value") for tag in root.iter("Choice")]
    assert offered == list({"labels": ANSWERS, "pairs": ("left", "right", "same"), "scores": DEFECTS}[task])


def test_pairs_are_of_one_product_and_prompt() -> None:
    pictures = {id: Picture(id, Path(id), group=group) for id, group in zip("dabc", "ggxg", strict=True)}
    assert questions("pairs", pictures) == [("a", "c"), ("c", "d")]
    assert questions("scores", pictures) == [("d",), ("a",), ("b",), ("c",)]


def test_rfnets_verdict_is_a_prediction_where_labels_are_asked() -> None:
    picture = Picture("a", Path("a.png"), probabilities={"available": 0.2, "size_mismatch": 0.8})
    (found,) = predictions("labels", picture)
    assert (found["score"], found["result"][0]["value"]) == (0.8, {"choices": ["size_mismatch"]})
    assert predictions("scores", picture) == predictions("labels", Picture("b", Path("b.png"))) == []


def test_annotations_are_votes() -> None:
    annotation = {
        "result": [choices("labels", "size_mismatch", "space_mismatch"), PLACE, NOTE],
        "lead_time": 2.5,
    }
    vote = vote_of("labels", "a", annotation, "anna", "here/1")
    assert vote.answer == {"labels": ["space_mismatch", "size_mismatch"]}
    assert (vote.left, vote.right, vote.x, vote.y, vote.seconds) == ("a", None, 0.25, 0.5, 2.5)
    assert (vote.note, vote.rater, vote.origin) == ("it <b>floats</b>\na lot", "anna", "here/1")
    pair = vote_of("pairs", "a b", {"result": [choices("better", "right")]}, "anna", "here/2")
    assert (pair.left, pair.right, pair.answer) == ("a", "b", {"better": "right"})
    rating = {"from_name": "score", "type": "rating", "value": {"rating": 4}}
    score = vote_of("scores", "a", {"result": [rating, choices("defects", "floats")]}, "anna", "here/3")
    assert score.answer == {"score": 4, "defects": ["floats"]}


@pytest.mark.parametrize(
    ("task", "result"),
    [
        ("labels", []),
        ("labels", [choices("labels", "available", "size_mismatch")]),
        ("pairs", [choices("better")]),
        ("scores", [choices("defects", "floats")]),
    ],
)
def test_what_is_no_answer_is_no_vote(task: str, result: list) -> None:
    with pytest.raises(ValueError, match="one"):
        vote_of(task, "a b", {"result": result}, "anna", "here/1")


def test_the_guide_is_escaped() -> None:
    assert instructions([Entry("available", "<script>alert(1)</script>")]) == (
        "<p><b>available</b>: &lt;script&gt;alert(1)&lt;/script&gt;</p>"
    )
