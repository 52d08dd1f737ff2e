"""What a rater can be asked: one picture, or two."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rfft.feedback.votes import PAIRED, Picture

HELD = 300.0  # seconds for which a question that was shown to a rater counts as answered
Key = tuple[str, str | None]


@dataclass(frozen=True)
class Question:
    """A picture, or two, and why they are shown: plain, gold or repeat."""

    left: str
    right: str | None = None
    kind: str = "plain"

    @property
    def key(self) -> Key:
        """Return what is asked about, however often and of whomever."""
        return self.left, self.right


def matches(pictures: Iterable[Picture]) -> Iterator[Question]:
    """Yield what two sources have painted in one place, the first source's picture as left."""
    places: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.place:
            places[picture.place].append(picture)
    for found in places.values():
        if len(found) == 2 and found[0].source != found[1].source:
            yield Question(found[0].id, found[1].id)


def certainty(picture: Picture) -> float:
    """Return RFNet's probability of the class that it takes for likeliest; 1 without a verdict."""
    return max(picture.probabilities.values()) if picture.probabilities else 1.0


def swapped(task: str, question: Question, rater: str) -> bool:
    """Tell whether a rater sees the two pictures the other way round: by chance, but always the same."""
    digest = hashlib.sha256(f"{rater}\n{question.left}\n{question.right}".encode()).digest()
    return task in PAIRED and digest[0] % 2 == 1


def as_seen(task: str, answer: dict[str, Any], turned: bool) -> dict[str, Any]:
    """Return an answer with sides changed where the pictures were; doing it twice changes nothing."""
    if not turned:
        return answer
    other = {"left": "right", "right": "left", "good": "bad", "bad": "good"}
    return {name: other.get(value, value) for name, value in answer.items()}
