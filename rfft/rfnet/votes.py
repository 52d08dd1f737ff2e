"""What people said on the page of `rfft review`, as labelled pictures: data.train=[votes:feedback.db].

A picture's target is the mean of its raters, each of whom divides 1 among the faults that are ticked; its
weight says how far they agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rfft.errors import UserError, require
from rfft.feedback.folder import Record
from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import UNSUITABLE, Picture, Vote, read_rows
from rfft.review.exports import by_picture, shares
from rfft.rfnet.schema import VOTES
from rfft.types import LABELS

ROWS = (".jsonl", ".parquet")
NAMES = [field.name for field in fields(Vote)]


@dataclass(frozen=True)
class VotedPicture(Record):
    """A picture that people voted on, wherever it lies; maps made of it are kept beside the votes."""

    image_file: Path = Path()
    product_file: Path = Path()

    def files(self) -> tuple[Path, Path]:
        """Return where the picture and its product lie."""
        return self.image_file, self.product_file

    def map_file(self, kind: str) -> Path:
        """Return where a map that comes with the picture would lie, as in RF1M's form."""
        return self.image_file.parent.parent / kind / f"{self.image_file.stem}.png"


def read_votes(name: str) -> list[Record]:
    """Return the pictures that people labelled in votes:FILE, in the order of their ids.

    FILE is a store of `rfft review serve`, or the .jsonl or .parquet that `rfft review export` wrote. What at
    least half of the raters call unsuitable is left out. Raises UserError where nothing is left, and for a
    picture whose product or caption is not known.
    """
    file = Path(name.removeprefix(VOTES))
    votes, pictures = _rows(file) if file.suffix in ROWS else _store(file)
    voted = sorted(by_picture(votes).items())
    records: list[Record] = [
        _record(file, pictures.get(id), found) for id, found in voted if not _is_unsuitable(found)
    ]
    advice = f"rfft review serve PICTURES --store {file}"
    require(records, f"{file}: no picture in it is labelled yet: {advice}")
    return records


def _store(file: Path) -> tuple[list[Vote], dict[str, Picture]]:
    store = VoteStore(file)
    try:
        return store.votes("labels"), store.pictures()
    finally:
        store.close()


def _rows(file: Path) -> tuple[list[Vote], dict[str, Picture]]:
    votes: list[Vote] = []
    pictures: dict[str, Picture] = {}
    for number, row in enumerate(read_rows(file), start=1):
        try:
            vote = Vote(**{name: row[name] for name in NAMES} | {"answer": json.loads(row["answer"])})
            path, product = Path(row["left_path"]), row["left_product"] and Path(row["left_product"])
            caption, prompt = (str(row[name]) for name in ("caption", "prompt"))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{file}: row {number} is no vote; give what `rfft review export` wrote"
            ) from None
        if vote.task == "labels" and not vote.undone:
            pictures[vote.left] = Picture(vote.left, path, product, caption, prompt)
            votes.append(vote)
    return votes, pictures


def _record(file: Path, picture: Picture | None, votes: Sequence[Vote]) -> VotedPicture:
    require(picture is not None, f"{file}: what {votes[0].left} shows is not known; give the store itself")
    assert picture is not None
    for what, known in (("product", picture.product), ("caption", picture.caption)):
        require(
            known,
            f"{picture.path}: its {what} is not known, and RFNet sees it: have people label what "
            "`rfft generate` painted, or feedback in RF1M's form",
        )
    target = target_of(votes)
    return VotedPicture(
        folder=file.with_name(f"{file.name}.maps"),
        name=f"{picture.id}.png",
        label=max(range(len(LABELS)), key=target.__getitem__),
        caption=picture.caption,
        prompt=picture.prompt,
        target=target,
        weight=agreement(votes),
        image_file=picture.path,
        product_file=picture.product or Path(),
    )


def target_of(votes: Sequence[Vote]) -> tuple[float, ...]:
    """Return the share of each class [5] in what raters said, but for those who called it unsuitable."""
    found = shares([vote for vote in votes if UNSUITABLE not in vote.answer["labels"]])
    return tuple(found[label] for label in LABELS)


def agreement(votes: Sequence[Vote]) -> float:
    """Return how much of a rater's answer is in the mean of all, on average.

    It is 1 where all say the same, 5/9 where one of three differs, 1/3 where all three do.
    """
    mean = shares(votes)
    return sum(_overlap(shares([vote]), mean) for vote in votes) / len(votes)


def _overlap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    return sum(min(one[name], other[name]) for name in one)


def _is_unsuitable(votes: Iterable[Vote]) -> bool:
    said: list[Any] = [UNSUITABLE in vote.answer["labels"] for vote in votes]
    return 2 * sum(said) >= len(said)
