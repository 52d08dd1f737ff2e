"""Votes in other forms: one row a vote, RF1M's labels, Pick-a-Pic's pairs."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rfft.errors import UserError
from rfft.feedback.folder import CODE_OF_CLASS, LABEL_FILE, PROMPT_FILE, UNSUITABLE
from rfft.feedback.votes import ANSWERS, Picture, Vote, write_rows
from rfft.feedback.votes import UNSUITABLE as BROKEN_PHOTO
from rfft.types import LABELS
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
    latest = {(v.left, v.rater): v for v in votes if v.task == "labels" and v.kind != "repeat"}
    found: dict[str, list[Vote]] = defaultdict(list)
    for vote in latest.values():
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
    with new_folder(out) as draft:
        lines, prompts, soft = [], [], []
        for folder in ("images", "products"):
            (draft / folder).mkdir()
        for name, found in voted.items():
            picture = pictures[name]
            for stem, part in _rows(picture, found, how):
                share = shares(part)
                image = _copy(picture, stem, draft)
                caption = " ".join(picture.caption.split())
                lines.append(f"{image}\t{code(max(ANSWERS, key=lambda a: share[a]))}\t{caption}\n")
                prompts.append({"id": stem, "prompt": picture.prompt})
                soft.append({"id": stem, "votes": len(part), "shares": share})
        (draft / LABEL_FILE).write_text("".join(lines), encoding="utf-8")
        write_rows(draft / PROMPT_FILE, prompts)
        if how == "mean":
            write_rows(draft / SOFT, soft)
    return len(lines)


def code(answer: str) -> int:
    """Return RF1M's code of an answer."""
    return UNSUITABLE if answer == BROKEN_PHOTO else CODE_OF_CLASS[LABELS.index(answer)]


def _rows(picture: Picture, votes: Votes, how: How) -> Iterator[tuple[str, Votes]]:
    stem = f"{picture.path.stem}-{picture.id[:8]}"
    if how != "votes":
        yield stem, votes
        return
    for number, vote in enumerate(votes):
        yield f"{stem}-{number}", [vote]


def _copy(picture: Picture, stem: str, draft: Path) -> str:
    if picture.product is None:
        raise UserError(
            f"{picture.path}: its product is not known, and RF1M's form needs it: ask about what "
            "`rfft generate` painted, or export votes as .jsonl or .parquet"
        )
    name = f"{stem}{picture.path.suffix}"
    for source, target in ((picture.path, f"images/{name}"), (picture.product, f"products/{stem}.png")):
        try:
            shutil.copyfile(source, draft / target)
        except FileNotFoundError:
            raise UserError(f"{source}: gone since it was voted on; put it back to export it") from None
    return name


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


def report_files(out: Path, found: Mapping[str, Any], markdown: str) -> None:
    """Write the figures as report.json and report.md into a folder."""
    os.makedirs(out, exist_ok=True)
    (out / "report.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown, encoding="utf-8")
