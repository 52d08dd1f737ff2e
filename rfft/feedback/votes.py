"""A person's vote on a picture, or on two: what may be answered, and its form in files.

A file of votes has one row a vote, as JSON lines (votes.jsonl) or parquet (votes.parquet): the fields of Vote
and of the pictures that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfft.errors import UserError
from rfft.types import LABELS
from rfft.utils.atomic_io import new_file

TASKS = ("labels", "pairs", "gsb", "scores")
PAIRED = ("pairs", "gsb")  # tasks that show two pictures
UNSUITABLE = "unsuitable"  # the product photo itself is broken
ANSWERS = (*LABELS, UNSUITABLE)
BETTER = ("left", "right", "same")
DIMENSIONS = ("overall", "alignment", "quality", "realism")  # of Good/Same/Bad
GSB = ("good", "same", "bad")  # the first run is better than the second, as good, worse
DEFECTS = (
    *(
        "floats",
        "wrong size",
        "drowns",
        "grown part",
        "artefacts",
        "wrong place",
        "bad light",
        "unnatural colours",
    ),
)
LONGEST_NOTE = 2000  # characters


@dataclass(frozen=True)
class Picture:
    """A picture that people are asked about."""

    id: str  # sha256 of the file's bytes, its first 32 digits
    path: Path
    product: Path | None = None
    caption: str = ""
    prompt: str = ""
    group: str = ""  # pictures of one product and prompt
    place: str = ""  # of pictures that two runs have painted with the same product, prompt and seed
    source: str = ""  # the run or folder that it comes from
    probabilities: Mapping[str, float] | None = None  # RFNet's
    label: str | None = None  # known beforehand: a gold picture


@dataclass(frozen=True)
class Vote:
    """One rater's answer; `left` and `right` are pictures' ids, whatever side they were shown on."""

    task: str
    left: str
    rater: str
    answer: Mapping[str, Any]
    right: str | None = None
    note: str = ""
    x: float | None = None  # the place that was pointed at, as a share of the width
    y: float | None = None  # and of the height
    seconds: float | None = None  # from showing the picture to the answer
    round: int = 1
    kind: str = "plain"  # plain, gold (the answer is known) or repeat (asked again)
    time: str = ""  # UTC, ISO 8601
    undone: bool = False
    origin: str = ""  # where it came from, if not from this program's page: it is taken in once
    id: int | None = field(default=None, compare=False)


def check_answer(task: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a task, freed of anything else.

    labels: {"labels": [...]} of ANSWERS, where available and unsuitable stand alone. pairs: {"better": ...},
    one of BETTER. gsb: {"overall": ...} and other DIMENSIONS, one of GSB each. scores: {"score": 1 to 5,
    "defects": [...]} of DEFECTS. Raises ValueError for anything else.
    """
    return dict(_CHECKS[task](answer))


def _check_labels(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    labels = _subset(answer.get("labels"), ANSWERS)
    alone = {LABELS[0], UNSUITABLE} & set(labels)
    if not labels or (alone and len(labels) > 1):
        raise ValueError("one label, or several faults")
    return {"labels": labels}


def _check_pairs(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"better": _one(answer.get("better"), BETTER)}


def _check_gsb(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    found = {name: _one(answer[name], GSB) for name in DIMENSIONS if answer.get(name) is not None}
    if DIMENSIONS[0] not in found:
        raise ValueError(f"{DIMENSIONS[0]} is missing")
    return found


def _check_scores(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    return {
        "score": _one(answer.get("score"), (1, 2, 3, 4, 5)),
        "defects": _subset(answer.get("defects", []), DEFECTS),
    }


_CHECKS = {"labels": _check_labels, "pairs": _check_pairs, "gsb": _check_gsb, "scores": _check_scores}


def _one(value: Any, known: tuple[Any, ...]) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value not in known:
        raise ValueError(f"one of {', '.join(map(str, known))}")
    return value


def _subset(values: Any, known: tuple[str, ...]) -> list[str]:
    if not isinstance(values, list):
        raise ValueError(f"a list of {', '.join(known)}")
    chosen = {_one(value, known) for value in values}
    return [name for name in known if name in chosen]


def latest(votes: Iterable[Vote]) -> list[Vote]:
    """Return of each rater's votes on a question the last one, without undone ones and hidden repeats."""
    counting = (vote for vote in votes if vote.kind != "repeat" and not vote.undone)
    return list({(v.task, v.rater, v.left, v.right): v for v in counting}.values())


def rows(votes: Iterable[Vote], pictures: Mapping[str, Picture]) -> list[dict[str, Any]]:
    """Return votes as flat rows, with path, caption, prompt and source of what they are about."""
    found = []
    for vote in votes:
        row: dict[str, Any] = {name: value for name, value in vars(vote).items() if name != "answer"}
        row["answer"] = json.dumps(vote.answer, ensure_ascii=False)
        for side in ("left", "right"):
            picture = pictures.get(row[side])
            row[f"{side}_path"] = str(picture.path) if picture else None
            row[f"{side}_source"] = picture.source if picture else None
        about = pictures.get(vote.left)
        row["left_product"] = str(about.product) if about and about.product else None
        row["caption"], row["prompt"] = (about.caption, about.prompt) if about else ("", "")
        found.append(row)
    return found


def write_rows(path: Path, found: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, or as parquet where the name ends so."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with new_file(path) as file:
            pq.write_table(pa.Table.from_pylist(found), file)
        return
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in found)
    with new_file(path) as file:
        file.write(text.encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows of votes from JSON lines or parquet; raises UserError for a file that is neither."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_table(path).to_pylist())
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path}: not there; give a file that `rfft review export` wrote") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no file of votes ({error}); give one that `rfft review export` wrote"
        ) from None
