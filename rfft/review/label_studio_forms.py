"""What Label Studio is told and what it tells: labeling configs, tasks, predictions, and answers in its form.

https://labelstud.io/guide/export#Label-Studio-JSON-format-of-annotated-tasks
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from rfft.feedback.votes import ANSWERS, BETTER, DEFECTS, Picture, Vote, check_answer
from rfft.review.guide import Entry

TASKS = ("labels", "pairs", "scores")
ABOUT = "rfft"  # the field of a task's data that names its pictures
TEXTS = '<Text name="caption" value="$caption"/><Text name="prompt" value="$prompt"/>'
NOTE = '<TextArea name="note" toName="{0}" rows="2" maxSubmissions="1" placeholder="A note, if you like"/>'
Items = Sequence[Mapping[str, Any]]


def labeling_config(task: str) -> str:
    """Return the labeling config of a task."""
    return {"labels": _labels, "pairs": _pairs, "scores": _scores}[task]()


def _labels() -> str:
    return _beside(
        f'<Choices name="labels" toName="image" choice="multiple" required="true">'
        f"{_choices(ANSWERS)}</Choices>"
        '<KeyPointLabels name="place" toName="image"><Label value="here"/></KeyPointLabels>'
    )


def _pairs() -> str:
    return (
        '<View><View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">'
        '<Image name="left" value="$left"/><Image name="right" value="$right"/></View>'
        f"{TEXTS}"
        f'<Choices name="better" toName="left" choice="single" required="true">{_choices(BETTER)}</Choices>'
        f"{NOTE.format('left')}</View>"
    )


def _scores() -> str:
    return _beside(
        '<Rating name="score" toName="image" maxRating="5" required="true"/>'
        f'<Choices name="defects" toName="image" choice="multiple">{_choices(DEFECTS)}</Choices>'
    )


def _beside(controls: str) -> str:
    """Return a config with the picture on the left and what is asked on the right, so that nobody scrolls."""
    return (
        '<View style="display: flex; gap: 1em"><View style="flex: 3">'
        '<Image name="image" value="$image" zoom="true"/></View>'
        f'<View style="flex: 2">{TEXTS}{controls}{NOTE.format("image")}</View></View>'
    )


def _choices(values: Iterable[str]) -> str:
    return "".join(
        f'<Choice value="{escape(value)}" hotkey="{i}"/>' for i, value in enumerate(values, start=1)
    )


def instructions(guide: Iterable[Entry]) -> str:
    """Return the guide as HTML."""
    return "".join(f"<p><b>{escape(e.name)}</b>: {escape(e.text)}</p>" for e in guide)


def questions(task: str, pictures: Mapping[str, Picture]) -> list[tuple[str, ...]]:
    """Return what is asked about: ids of single pictures, or of two of one product and prompt.

    Of n pictures of a group n - 1 pairs are asked about: neighbours in the order of their ids, so by chance.
    """
    if task != "pairs":
        return [(id,) for id in pictures]
    groups: dict[str, list[str]] = {}
    for picture in pictures.values():
        groups.setdefault(picture.group, []).append(picture.id)
    return [pair for group in groups.values() for pair in pairwise(sorted(group))]


def task_data(question: Sequence[str], pictures: Mapping[str, Picture], urls: Mapping[str, str]) -> dict:
    """Return a task's data; `urls` are those of the pictures on the server."""
    about = pictures[question[0]]
    names = ("image",) if len(question) == 1 else ("left", "right")
    shown = {name: urls[id] for name, id in zip(names, question, strict=True)}
    return {**shown, ABOUT: " ".join(question), "caption": about.caption, "prompt": about.prompt}


def predictions(task: str, picture: Picture) -> list[dict[str, Any]]:
    """Return RFNet's verdict on a picture as a prediction, if there is one and the task asks for it."""
    if task != "labels" or not picture.probabilities:
        return []
    verdict = max(picture.probabilities, key=picture.probabilities.__getitem__)
    choice = {"from_name": "labels", "to_name": "image", "type": "choices", "value": {"choices": [verdict]}}
    return [{"model_version": "RFNet", "score": picture.probabilities[verdict], "result": [choice]}]


def vote_of(task: str, about: str, annotation: Mapping[str, Any], rater: str, origin: str) -> Vote:
    """Return an annotation as a vote; raises ValueError where it is no answer to the task."""
    found: Items = annotation.get("result") or []
    values = {item["from_name"]: item["value"] for item in found}
    left, _, right = about.partition(" ")
    place = values.get("place", {})
    return Vote(
        task,
        left,
        rater,
        check_answer(task, _answer(task, values)),
        right or None,
        note="\n".join(values.get("note", {}).get("text", [])),
        x=place["x"] / 100 if "x" in place else None,
        y=place["y"] / 100 if "y" in place else None,
        seconds=annotation.get("lead_time"),
        time=str(annotation.get("updated_at") or ""),
        origin=origin,
    )


def _answer(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if task == "labels":
        return {"labels": values.get("labels", {}).get("choices", [])}
    if task == "pairs":
        return {"better": next(iter(values.get("better", {}).get("choices", [])), None)}
    return {
        "score": values.get("score", {}).get("rating"),
        "defects": values.get("defects", {}).get("choices", []),
    }
