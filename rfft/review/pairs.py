"""Two pictures of one product and prompt: the loser gives way to a new one, as in Pick-a-Pic."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping

from rfft.feedback.votes import Picture, Vote
from rfft.review.questions import HELD, Question


class Pairs:
    """The way of each rater through the pictures; a newcomer is always on the right."""

    def __init__(self, pictures: Mapping[str, Picture], raters: int) -> None:
        """Take the pictures, and to how many raters those of one product and prompt are given."""
        groups: dict[str, list[str]] = defaultdict(list)
        for picture in pictures.values():
            groups[picture.group].append(picture.id)
        self.groups = {name: ids for name, ids in groups.items() if len(ids) > 1}
        self._group_of = {name: group for group, ids in self.groups.items() for name in ids}
        self._wanted = raters
        self._votes: dict[str, Counter[str]] = defaultdict(Counter)  # of each rater, by group
        self._shown: dict[str, Question | None] = {}
        self._since: dict[str, float] = {}

    def next(self, rater: str) -> Question | None:
        """Return the two pictures that a rater compares now; None at the end."""
        if self._shown.get(rater) is None:
            group = self._open_group(rater)
            if group is None:
                return None
            self._shown[rater] = Question(*self.groups[group][:2])
        self._since[rater] = time.monotonic()
        return self._shown[rater]

    def coming(self, rater: str) -> list[str]:
        """Return the picture that a rater's next pair will hold, if that is known."""
        shown = self._shown.get(rater)
        return self._newcomers(shown)[:1] if shown else []

    def answered(self, vote: Vote) -> None:
        """Keep the better picture; of equals the left one stays."""
        self._count(vote, 1)
        newcomers = self._newcomers(Question(vote.left, vote.right))
        winner = vote.right if vote.answer["better"] == "right" else vote.left
        self._shown[vote.rater] = Question(str(winner), newcomers[0]) if newcomers else None

    def undone(self, vote: Vote) -> None:
        """Show again what a vote was about."""
        self._count(vote, -1)
        self._shown[vote.rater] = Question(vote.left, vote.right)

    def move_on(self, rater: str) -> None:
        """Go on to another product and prompt, if these have been compared at all."""
        shown = self._shown.get(rater)
        if shown and rater in self._votes[self._group_of[shown.left]]:
            self._shown[rater] = None

    def progress(self) -> dict[str, int]:
        """Return how many raters are wanted for all groups, and have begun with them."""
        there = sum(min(len(self._votes[group]), self._wanted) for group in self.groups)
        return {"wanted": len(self.groups) * self._wanted, "there": there}

    def _newcomers(self, question: Question) -> list[str]:
        ids = self.groups.get(self._group_of.get(question.left, ""), [])
        return ids[ids.index(question.right) + 1 :] if question.right in ids else []

    def _count(self, vote: Vote, by: int) -> None:
        group = self._group_of.get(vote.left, "")
        self._votes[group][vote.rater] += by
        self._votes[group] = +self._votes[group]

    def _open_group(self, rater: str) -> str | None:
        now, busy = time.monotonic(), defaultdict(set)
        for name, shown in self._shown.items():
            if shown and name != rater and now - self._since.get(name, now) < HELD:
                busy[self._group_of.get(shown.left, "")].add(name)
        for group in self.groups:
            voted = self._votes[group]
            if rater not in voted and len(voted.keys() | busy[group]) < self._wanted:
                return group
        return None
