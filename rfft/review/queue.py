"""Who is asked about what next.

Each question goes to k raters and to none of them twice, but for hidden repeats; some in between have a known
answer. In a second round only what raters, or raters and RFNet, disagree on is asked again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rfft.feedback.votes import Picture, Vote
from rfft.review.agreement import majority
from rfft.review.pairs import Pairs
from rfft.review.questions import HELD, Key, Question, certainty, matches

GOLD_EVERY, REPEAT_EVERY, REPEAT_AFTER = 12, 15, 8  # votes of a rater


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
        self.done: dict[Key, set[str]] = defaultdict(set)
        self.mine: dict[str, list[Vote]] = defaultdict(list)
        self._held: dict[Key, dict[str, float]] = defaultdict(dict)
        self._passed: dict[str, int] = defaultdict(int)  # of a rater: how many questions are over for good
        self.pairs = Pairs(pictures, settings.raters) if settings.task == "pairs" else None
        earlier = [vote for vote in votes if vote.task == settings.task]
        self.plain, self.gold = self._questions(earlier)
        self._wanted = {question.key for question in self.plain}
        self._there = 0
        for vote in earlier:
            if vote.round == settings.round:
                self.answered(vote)

    def next(self, rater: str, besides: Question | None = None) -> Question | None:
        """Return what a rater is to be asked now, and after `besides` if that is given; None at the end."""
        if self.pairs:
            return None if besides else self.pairs.next(rater)
        if self.settings.measure_raters and (hidden := self._hidden(rater, besides)):
            return hidden
        while self._passed[rater] < len(self.plain) and self._is_over(self.plain[self._passed[rater]], rater):
            self._passed[rater] += 1
        for question in self.plain[self._passed[rater] :]:
            if (besides is None or question.key != besides.key) and self._open(question, rater):
                self._held[question.key][rater] = time.monotonic()
                return question
        return None

    def soon(self, rater: str, besides: Question) -> list[str]:
        """Return the pictures that a rater will see after `besides`, if that is known."""
        if self.pairs:
            return self.pairs.coming(rater)
        coming = self.next(rater, besides)
        return [name for name in coming.key if name] if coming else []

    def answered(self, vote: Vote) -> None:
        """Take note of a vote."""
        self.mine[vote.rater].append(vote)
        if self.pairs:
            self.pairs.answered(vote)
        elif vote.kind == "plain":
            key = (vote.left, vote.right)
            self._there -= self._counted(key)
            self.done[key].add(vote.rater)
            self._there += self._counted(key)
            self._held[key].pop(vote.rater, None)

    def undone(self, vote: Vote) -> None:
        """Take note that a rater took back the last vote."""
        self.mine[vote.rater] = [v for v in self.mine[vote.rater] if v.id != vote.id]
        if self.pairs:
            self.pairs.undone(vote)
        elif vote.kind == "plain":
            key = (vote.left, vote.right)
            self._there -= self._counted(key)
            self.done[key].discard(vote.rater)
            self._there += self._counted(key)
            self._passed.clear()  # others may be asked about it, too

    def move_on(self, rater: str) -> None:
        """Go on to the pictures of another product and prompt."""
        if self.pairs:
            self.pairs.move_on(rater)

    def progress(self) -> dict[str, int]:
        """Return how many answers are wanted and there."""
        if self.pairs:
            return self.pairs.progress()
        return {"wanted": len(self.plain) * self.settings.raters, "there": self._there}

    def _counted(self, key: Key) -> int:
        return min(len(self.done[key]), self.settings.raters) if key in self._wanted else 0

    def _is_over(self, question: Question, rater: str) -> bool:
        done = self.done[question.key]
        return rater in done or len(done) >= self.settings.raters

    def _open(self, question: Question, rater: str) -> bool:
        if self._is_over(question, rater):
            return False
        now = time.monotonic()
        held = {r for r, since in self._held[question.key].items() if now - since < HELD and r != rater}
        return len(self.done[question.key] | held) < self.settings.raters

    # ---- questions ----

    def _questions(self, earlier: Sequence[Vote]) -> tuple[list[Question], list[Question]]:
        gold = [Question(p.id, kind="gold") for p in self.pictures.values() if p.label is not None]
        if self.settings.task == "pairs":
            return [], []
        if self.settings.task == "gsb":
            return self._again(list(matches(self.pictures.values())), earlier), []
        plain = [Question(p.id) for p in self.pictures.values() if p.label is None]
        if not plain:  # a labelled folder alone: its labels are compared with, as gold is, and hidden
            plain, gold = [Question(q.left) for q in gold], []
        plain = self._again(plain, earlier)
        if self.settings.uncertain_first:
            plain.sort(key=lambda question: certainty(self.pictures[question.left]))
        return plain, gold if self.settings.task == "labels" else []

    def _again(self, plain: list[Question], earlier: Sequence[Vote]) -> list[Question]:
        """Return what is asked in this round: all in the first, and what is disputed later."""
        if self.settings.round == 1:
            return plain
        before: dict[Key, list[Vote]] = defaultdict(list)
        for vote in earlier:
            if vote.kind == "plain" and vote.round < self.settings.round:
                before[vote.left, vote.right].append(vote)
        return [question for question in plain if self._disputed(question, before[question.key])]

    def _disputed(self, question: Question, votes: Sequence[Vote]) -> bool:
        """Tell whether raters, or most of them and RFNet, differ."""
        answers = {str(vote.answer) for vote in votes}
        verdict = self.pictures[question.left].probabilities
        if len(answers) > 1 or not votes or not verdict or self.settings.task != "labels":
            return len(answers) > 1
        return majority(votes) != max(verdict, key=lambda name: verdict[name])

    # ---- hidden questions, which measure raters ----

    def _hidden(self, rater: str, besides: Question | None) -> Question | None:
        count = len(self.mine[rater]) + (besides is not None)
        if count % GOLD_EVERY == GOLD_EVERY - 1:
            seen = {vote.left for vote in self.mine[rater]}
            gold = next((q for q in self.gold if q.left not in seen and q != besides), None)
            if gold:
                return gold
        repeat = self._repeat(rater) if count % REPEAT_EVERY == REPEAT_EVERY - 1 else None
        return None if repeat == besides else repeat

    def _repeat(self, rater: str) -> Question | None:
        mine = self.mine[rater]
        repeated = {vote.left for vote in mine if vote.kind == "repeat"}
        old = [v for v in mine[:-REPEAT_AFTER] if v.kind == "plain" and v.left not in repeated]
        again = next((v for v in old if v.left in self.pictures), None)
        return Question(again.left, again.right, "repeat") if again else None
