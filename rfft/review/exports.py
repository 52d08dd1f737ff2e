"""Votes in other forms: one row a vote, RF1M's labels, Pick-a-Pic's pairs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rfft.errors import UserError
from rfft.feedback.folder import LabelledFile, code_of, write_feedback
from rfft.feedback.votes import ANSWERS, Picture, Vote, latest, write_rows
from rfft.utils.atomic_io import new_folder, refuse_existing

SOFT = "soft.jsonl"  # beside a label file: what share of the votes each class has
How = Literal["majority", "mean", "votes"]
Votes = Sequence[Vote]


def shares(votes: Votes) -> dict[str, float]:
    """Return what share of the votes each answer has; a vote for several faults counts for each in part."""
    found = dict.fromkeys(ANSWERS, 0.0)
    for vote in votes:
        labels = vote.answer["labels"]
        for label in labels:
            found[label] += 1 / len(labels) / len(votes)
    return found


def by_picture(votes: Votes) -> dict[str, list[Vote]]:
    """Return the labels' votes of each picture, of every rater the latest and no repeats."""
    found: dict[str, list[Vote]] = defaultdict(list)
    for vote in latest(vote for vote in votes if vote.task == "labels"):
        found[vote.left].append(vote)
    return dict(found)


def to_rf1m(out: Path, how: How, votes: Votes, pictures: Mapping[str, Picture]) -> int:
    """Write labelled pictures as a new folder in RF1M's form; returns how many.

    majority: the answer of most votes, of equally many the first in the order of ANSWERS. mean: the same, and
    soft.jsonl with every class's share of the votes. votes: a picture of its own for every vote. Raises
    UserError where there are no labels, or a picture's product is not known.
    """
    refuse_existing(out, "name a new folder")
    voted = by_picture(votes)
    if not voted:
        raise UserError("no label has been given yet: nothing to export")
    parts = [
        (pictures[name], stem, part)
        for name, found in voted.items()
        for stem, part in _rows(pictures[name], found, how)
    ]
    with new_folder(out) as draft:
        write_feedback(draft, [_labelled(picture, stem, shares(part)) for picture, stem, part in parts])
        if how == "mean":
            soft = [{"id": stem, "votes": len(part), "shares": shares(part)} for _, stem, part in parts]
            write_rows(draft / SOFT, soft)
    return len(parts)


def _rows(picture: Picture, votes: Votes, how: How) -> Iterator[tuple[str, Votes]]:
    stem = f"{picture.path.stem}-{picture.id[:8]}"
    if how != "votes":
        yield stem, votes
        return
    for number, vote in enumerate(votes):
        yield f"{stem}-{number}", [vote]


def _labelled(picture: Picture, stem: str, share: Mapping[str, float]) -> LabelledFile:
    if picture.product is None:
        raise UserError(
            f"{picture.path}: its product is not known, and RF1M's form needs it: ask about what "
            "`rfft generate` painted, or export votes as .jsonl or .parquet"
        )
    for file in (picture.path, picture.product):
        if not file.is_file():
            raise UserError(f"{file}: gone since it was voted on; put it back to export it")
    code = code_of(max(ANSWERS, key=lambda answer: share[answer]))
    name = f"{stem}{picture.path.suffix}"
    return LabelledFile(name, code, picture.caption, picture.prompt, picture.path, picture.product)


def to_pick_a_pic(out: Path, votes: Votes, pictures: Mapping[str, Picture]) -> int:
    """Write pairs as parquet (or JSON lines, without the pictures) in Pick-a-Pic's columns; returns how many.

    Columns: https://huggingface.co/datasets/yuvalkirstain/pickapic_v2 (arXiv 2305.01569).
    """
    pairs = [vote for vote in votes if vote.task == "pairs"]
    if not pairs:
        raise UserError("no pair has been compared yet: nothing to export")
    write_rows(out, [_pair(vote, pictures, with_pictures=out.suffix == ".parquet") for vote in pairs])
    return len(pairs)


def _pair(vote: Vote, pictures: Mapping[str, Picture], with_pictures: bool) -> dict[str, Any]:
    sides = [pictures[name] for name in (vote.left, vote.right or "")]
    first = {"left": 1.0, "right": 0.0, "same": 0.5}[vote.answer["better"]]
    row: dict[str, Any] = {
        "are_different": first != 0.5,
        "best_image_uid": "tie" if first == 0.5 else sides[0 if first else 1].id,
        "caption": sides[0].prompt or sides[0].caption,
        "created_at": vote.time,
        "has_label": True,
        "user_id": vote.rater,
        "ranking_id": vote.id,
    }
    for i, (side, label) in enumerate(zip(sides, (first, 1 - first), strict=True)):
        row |= {f"image_{i}_uid": side.id, f"label_{i}": label, f"model_{i}": side.source}
        row |= {f"jpg_{i}": side.path.read_bytes()} if with_pictures else {f"image_{i}_path": str(side.path)}
    return row


def to_rows(out: Path, rows: list[dict[str, Any]]) -> int:
    """Write one row a vote as .jsonl or .parquet; raises UserError for another name."""
    if out.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{out}: name it .jsonl or .parquet, or choose another --form")
    write_rows(out, rows)
    return len(rows)
