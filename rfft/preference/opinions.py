"""People's opinions as examples to learn from: pairs of pictures, and scored ones, out of votes.

Votes come from a store (feedback.db), from rows that `rfft review export` wrote (.jsonl, .parquet), and
pairs also in the columns of Pick-a-Pic (arXiv 2305.01569): caption, jpg_0, jpg_1, label_0, label_1,
image_0_uid, ...
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from rfft.errors import UserError
from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import check_answer, read_rows, rows

Row = dict[str, Any]
Source = Path | bytes  # a picture's file, or what is in it
OVERALL = "overall"
FIRST = {"left": 1.0, "right": 0.0, "same": 0.5, "good": 1.0, "bad": 0.0}  # share of the first picture


@dataclass(frozen=True)
class Pair:
    """Two pictures, by id, of one prompt, and what share of people prefer the first in one dimension."""

    first: str
    second: str
    prompt: str
    share: float
    dimension: str = OVERALL
    votes: int = 1


@dataclass(frozen=True)
class Scored:
    """A picture, by id, with the scores that people gave it, 1 to 5, and the defects that each named."""

    picture: str
    prompt: str
    scores: tuple[int, ...]
    defects: tuple[tuple[str, ...], ...]


Example = TypeVar("Example", Pair, Scored)


@dataclass(frozen=True)
class Opinions(Generic[Example]):
    """Examples, and where their pictures are."""

    examples: list[Example]
    pictures: dict[str, Source]


def read_pairs(path: Path, dimensions: Iterable[str]) -> Opinions[Pair]:
    """Return the pairs of a file in these dimensions, votes on one question together.

    `pairs` votes and Pick-a-Pic's are about OVERALL. Raises UserError where there is none.
    """
    found, wanted = _rows(path), set(dimensions)
    published = bool(found) and "task" not in found[0]
    verdicts, shown = (_published, _published_pictures) if published else (_verdicts, _pictures)
    pictures: dict[str, Source] = {}
    votes: dict[tuple[str, str, str, str], list[float]] = defaultdict(list)
    for number, row in enumerate(found if published else _latest(found, "pairs", "gsb"), start=1):
        judged = _checked(path, number, verdicts, row)
        if not judged:
            continue
        first, second = _checked(path, number, shown, row, path.parent)
        pictures |= {first[0]: first[1], second[0]: second[1]}
        for dimension, share in judged:
            votes[first[0], second[0], _text(row), dimension].append(share)
    pairs = [
        Pair(first, second, text, sum(shares) / len(shares), dimension, len(shares))
        for (first, second, text, dimension), shares in votes.items()
        if dimension in wanted
    ]
    if not pairs:
        raise UserError(
            f"{path}: no pair has been compared here in {', '.join(sorted(wanted))}: `rfft review serve "
            "--task pairs` or gsb asks for them"
        )
    return Opinions(pairs, _used(pictures, [name for pair in pairs for name in (pair.first, pair.second)]))


def read_scores(path: Path) -> Opinions[Scored]:
    """Return the scored pictures of a file, all raters' votes on one together; raises UserError for none."""
    pictures: dict[str, Source] = {}
    given: dict[str, Scored] = {}
    for number, row in enumerate(_latest(_rows(path), "scores"), start=1):
        answer = _checked(path, number, _answer, row)
        name, source = _checked(path, number, _picture, row, path.parent, "left")
        pictures[name] = source
        known = given.get(name, Scored(name, _text(row), (), ()))
        given[name] = replace(
            known,
            scores=(*known.scores, answer["score"]),
            defects=(*known.defects, tuple(answer["defects"])),
        )
    if not given:
        raise UserError(f"{path}: no picture has been scored here: `rfft review serve --task scores` asks")
    return Opinions(list(given.values()), pictures)


def split(opinions: Opinions[Example], share: float) -> tuple[list[Example], list[Example]]:
    """Split examples into those for training and those for validation, about `share` of all.

    All of a prompt, or of a picture without one, fall on the same side, whatever other examples there are.
    """
    limit = round(share * 2**32)
    keys = [e.prompt or (e.first if isinstance(e, Pair) else e.picture) for e in opinions.examples]
    held = [zlib.crc32(key.encode()) < limit for key in keys]
    sides = [[e for e, out in zip(opinions.examples, held, strict=True) if out == side] for side in (0, 1)]
    if not all(sides):
        raise UserError(
            f"data.validation_share={share} leaves {len(sides[0])} examples for training and {len(sides[1])} "
            "for validation: name other votes with data.validation"
        )
    return sides[0], sides[1]


def _rows(path: Path) -> list[Row]:
    """Return rows of a store or a file, less what was undone."""
    if path.suffix == ".db":
        store = VoteStore(path)
        try:
            return rows(store.votes(), store.pictures())
        finally:
            store.close()
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(f"{path}: parquet needs a package: pip install 'rfft[review]'")
    found = read_rows(path)
    if not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path}: no file of votes; give one that `rfft review export` wrote")
    return [row for row in found if not row.get("undone")]


def _latest(found: Iterable[Row], *tasks: str) -> list[Row]:
    """Return of each rater's votes on a question of these tasks the last one; hidden repeats do not count."""
    kept = {
        (row["task"], row.get("rater"), row.get("left"), row.get("right")): row
        for row in found
        if row.get("task") in tasks and row.get("kind") != "repeat"
    }
    return list(kept.values())


def _text(row: Row) -> str:
    return str(row.get("prompt") or row.get("caption") or "")


def _checked(path: Path, number: int, read: Callable[..., Any], *arguments: Any) -> Any:
    """Return what is read of a row; raises UserError that names the row for what does not fit."""
    try:
        return read(*arguments)
    except (KeyError, ValueError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path}: vote {number} cannot be used: {reason}") from None


def _answer(row: Row) -> dict[str, Any]:
    answer = row["answer"]
    return check_answer(row["task"], json.loads(answer) if isinstance(answer, str) else answer)


def _verdicts(row: Row) -> list[tuple[str, float]]:
    """Return what a vote says of each dimension: what share of it the first picture has."""
    answer = _answer(row)
    if row["task"] == "pairs":
        return [(OVERALL, FIRST[answer["better"]])]
    return [(dimension, FIRST[word]) for dimension, word in answer.items()]


def _published(row: Row) -> list[tuple[str, float]]:
    """Return the verdict of a row in Pick-a-Pic's columns; none for one that nobody has judged."""
    if row.get("has_label") is False:
        return []
    first, second = float(row["label_0"]), float(row["label_1"])
    if not (0 <= first <= 1 and abs(first + second - 1) < 1e-6):
        raise ValueError(f"label_0={first} and label_1={second} must be 1 and 0, 0 and 1, or a half each")
    return [(OVERALL, first)]


def _pictures(row: Row, folder: Path) -> list[tuple[str, Source]]:
    return [_picture(row, folder, side) for side in ("left", "right")]


def _picture(row: Row, folder: Path, side: str) -> tuple[str, Source]:
    if not row.get(f"{side}_path"):
        raise ValueError(f"its {side} picture is not known")
    return str(row[side]), folder / str(row[f"{side}_path"])


def _published_pictures(row: Row, folder: Path) -> list[tuple[str, Source]]:
    found: list[tuple[str, Source]] = []
    for i in (0, 1):
        content, path = row.get(f"jpg_{i}"), row.get(f"image_{i}_path")
        if content is None and path is None:
            raise ValueError(f"jpg_{i} is missing")
        found.append((str(row[f"image_{i}_uid"]), folder / str(path) if content is None else bytes(content)))
    return found


def _used(pictures: dict[str, Source], names: Sequence[str]) -> dict[str, Source]:
    return {name: pictures[name] for name in dict.fromkeys(names)}
