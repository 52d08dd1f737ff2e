"""Who is asked about what next.

Each question goes to k raters and to none of them twice, but for hidden repeats; some in between have a known
answer. In a second round only what raters, or raters and RFNet, disagree on is asked again.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rfft.feedback.votes import PAIRED, Picture, Vote
from rfft.review.agreement import majority

GOLD_EVERY, REPEAT_EVERY, REPEAT_AFTER = 12, 15, 8  # votes of a rater
HELD = 300.0  # seconds for which a question that was shown to a rater counts as answered


@dataclass(frozen=True)
class Question:
    """A picture, or two, and how they are shown."""

    left: str
    right: str | None = None
    kind: str = "plain"

    @property
    def key(self) -> tuple[str, str | None]:
        """Return what is asked about, however often and of whomever."""
        return self.left, self.right


@dataclass(frozen=True)
class Settings:
    """What is asked, and how often."""

    task: str
    raters: int = 3  # for each question
    round: int = 1
    uncertain_first: bool = False  # what RFNet is least sure of comes first
    measure_raters: bool = True  # with hidden repeats and gold pictures


class Queue:
    """The questions of a task, and who has answered which; not safe for several threads."""

    def __init__(self, settings: Settings, pictures: Mapping[str, Picture], votes: Iterable[Vote]) -> None:
        """Take the answers that are there already."""
        self.settings, self.pictures = settings, pictures
        self.done: dict[tuple[str, str | None], set[str]] = defaultdict(set)
        self.mine: dict[str, list[Vote]] = defaultdict(list)
        self._held: dict[tuple[str, str | None], dict[str, float]] = defaultdict(dict)
        self._compared: dict[str, _Group] = {}
        earlier = [vote for vote in votes if vote.task == settings.task]
        for vote in earlier:
            if vote.round == settings.round:
                self.answered(vote)
        self.plain, self.gold = self._questions(earlier)

    def next(self, rater: str, besides: Question | None = None) -> Question | None:
        """Return what a rater is to be asked now, and after `besides` if that is given; None at the end."""
        if self.settings.task == "pairs":
            return None if besides else self._next_pair(rater)
        count = len(self.mine[rater]) + (besides is not None)
        seen = {vote.left for vote in self.mine[rater]} if self.settings.measure_raters else set()
        if self.settings.measure_raters and count % GOLD_EVERY == GOLD_EVERY - 1:
            gold = next((q for q in self.gold if q.left not in seen and q != besides), None)
            if gold:
                return gold
        if self.settings.measure_raters and count % REPEAT_EVERY == REPEAT_EVERY - 1:
            repeat = self._repeat(rater)
            if repeat and repeat != besides:
                return repeat
        for question in self.plain:
            if (besides is None or question.key != besides.key) and self._open(question, rater):
                self._held[question.key][rater] = time.monotonic()
                return question
        return None

    def answered(self, vote: Vote) -> None:
        """Take note of a vote."""
        self.mine[vote.rater].append(vote)
        if vote.kind == "plain":
            self.done[vote.left, vote.right].add(vote.rater)
            self._held[vote.left, vote.right].pop(vote.rater, None)
        if vote.rater in self._compared:
            self._compared[vote.rater].answered(vote)

    def undone(self, vote: Vote) -> None:
        """Take note that a rater took back the last vote."""
        self.mine[vote.rater] = [v for v in self.mine[vote.rater] if v.id != vote.id]
        self.done[vote.left, vote.right].discard(vote.rater)
        if vote.rater in self._compared:
            self._compared[vote.rater].shown = Question(vote.left, vote.right)

    def progress(self) -> dict[str, int]:
        """Return how many answers are wanted and there."""
        if self.settings.task == "pairs":
            groups = self._groups()
            there = sum(min(len(self._raters_of(group)), self.settings.raters) for group in groups)
            return {"wanted": len(groups) * self.settings.raters, "there": there}
        there = sum(min(len(self.done[q.key]), self.settings.raters) for q in self.plain)
        return {"wanted": len(self.plain) * self.settings.raters, "there": there}

    # ---- questions ----

    def _questions(self, earlier: Sequence[Vote]) -> tuple[list[Question], list[Question]]:
        gold = [Question(p.id, kind="gold") for p in self.pictures.values() if p.label is not None]
        if self.settings.task == "pairs":
            return [], []
        if self.settings.task == "gsb":
            return list(_matches(self.pictures.values())), []
        plain = [Question(p.id) for p in self.pictures.values() if p.label is None]
        if not plain:  # a labelled folder alone: its labels are compared with, as gold is, and hidden
            plain, gold = [Question(q.left) for q in gold], []
        if self.settings.round > 1:
            plain = [question for question in plain if self._disputed(question, earlier)]
        if self.settings.uncertain_first:
            plain.sort(key=lambda question: certainty(self.pictures[question.left]))
        return plain, gold if self.settings.task == "labels" else []

    def _disputed(self, question: Question, earlier: Sequence[Vote]) -> bool:
        """Tell whether raters, or most of them and RFNet, differ."""
        mine = [v for v in earlier if v.left == question.left and v.round < self.settings.round]
        answers = {str(v.answer) for v in mine if v.kind == "plain"}
        verdict = self.pictures[question.left].probabilities
        if len(answers) > 1 or not verdict or self.settings.task != "labels":
            return len(answers) > 1
        return bool(mine) and majority(mine) != max(verdict, key=lambda name: verdict[name])

    def _open(self, question: Question, rater: str) -> bool:
        done, now = self.done[question.key], time.monotonic()
        held = {
            name for name, since in self._held[question.key].items() if now - since < HELD and name != rater
        }
        return rater not in done and len(done | held) < self.settings.raters

    def _repeat(self, rater: str) -> Question | None:
        mine = self.mine[rater]
        repeated = {vote.left for vote in mine if vote.kind == "repeat"}
        old = [v for v in mine[:-REPEAT_AFTER] if v.kind == "plain" and v.left not in repeated]
        return Question(old[0].left, old[0].right, "repeat") if old else None

    # ---- pairs ----

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = defaultdict(list)
        for picture in self.pictures.values():
            groups[picture.group].append(picture.id)
        return {name: ids for name, ids in groups.items() if len(ids) > 1}

    def _raters_of(self, group: str) -> set[str]:
        return {
            r for r, votes in self.mine.items() if any(self.pictures[v.left].group == group for v in votes)
        }

    def _next_pair(self, rater: str) -> Question | None:
        """Return two pictures of one product and prompt; the loser gives way to a new one."""
        current = self._compared.get(rater)
        if current is None or current.shown is None:
            group = self._new_group(rater)
            if group is None:
                return None
            self._compared[rater] = current = group
        return current.shown

    def _new_group(self, rater: str) -> _Group | None:
        for name, ids in self._groups().items():
            raters = self._raters_of(name)
            if rater not in raters and len(raters) < self.settings.raters:
                return _Group(ids)
        return None

    def coming(self, rater: str) -> list[str]:
        """Return the picture that a rater's next pair will hold, if that is known."""
        current = self._compared.get(rater)
        return current.left[:1] if current else []

    def move_on(self, rater: str) -> None:
        """Go on to another product and prompt."""
        current = self._compared.get(rater)
        if current is not None and current.began:
            current.shown = None


class _Group:
    """One rater's way through the pictures of a product and prompt."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.left = list(ids[2:])
        self.shown: Question | None = Question(ids[0], ids[1])
        self.began = False

    def answered(self, vote: Vote) -> None:
        """Keep the better one; of equals the left one stays."""
        self.began = True
        if self.shown is None or self.shown.key != (vote.left, vote.right):
            return
        winner = vote.right if vote.answer["better"] == "right" else vote.left
        self.shown = Question(winner, self.left.pop(0)) if self.left and winner else None


def _matches(pictures: Iterable[Picture]) -> Iterator[Question]:
    """Yield what two sources have painted in one place, the first source's picture as left."""
    places: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.place:
            places[picture.place].append(picture)
    for found in places.values():
        if len({p.source for p in found}) == 2:
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
