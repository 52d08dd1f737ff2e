"""What is asked of whom, and what is answered: the state behind the review page.

A vote is on disk before `vote` returns.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import HTTPException
from pydantic import BaseModel, Field, StringConstraints

from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import LONGEST_NOTE, Picture, Vote, check_answer
from rfft.review.guide import Entry
from rfft.review.questions import Key, Question, as_seen, swapped
from rfft.review.queue import Queue, Settings

NAMES = StringConstraints(strip_whitespace=True, min_length=1, max_length=60, pattern=r"^[^\x00-\x1f]+$")


class Entering(BaseModel):
    """Who a rater says to be, where no tokens are needed."""

    name: Annotated[str, NAMES]


class Answer(BaseModel):
    """A vote as the page sends it; sides are as they were shown."""

    left: str
    right: str | None = None
    answer: dict[str, Any]
    note: Annotated[str, Field(max_length=LONGEST_NOTE)] = ""
    x: Annotated[float | None, Field(ge=0, le=1)] = None
    y: Annotated[float | None, Field(ge=0, le=1)] = None
    seconds: Annotated[float | None, Field(ge=0)] = None


@dataclass
class Review:
    """What is asked of whom, kept in step with the store.

    A rater's requests come one after the other; all raters share what is in memory, under one lock, which is
    not held while a vote goes to disk.
    """

    store: VoteStore
    settings: Settings
    pictures: dict[str, Picture]
    guide: Sequence[Entry] = ()
    with_tokens: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    turns: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock))

    def __post_init__(self) -> None:
        votes = self.store.votes(self.settings.task)
        self.queue = Queue(self.settings, self.pictures, votes)
        self.earlier: dict[Key, list[Vote]] = defaultdict(list)  # what was said in the rounds before
        for vote in votes:
            if vote.round < self.settings.round:
                self.earlier[vote.left, vote.right].append(vote)
        self.raters = {token: name for name, token in self.store.raters().items()}
        self.shown: dict[str, Question] = {}

    def enter(self, name: str) -> str:
        """Return the token of a rater."""
        with self.lock:
            token = self.store.add_rater(name)
            self.raters[token] = name
            return token

    def ask(self, rater: str) -> dict[str, Any]:
        """Return what a rater is asked now: the same again until it is answered."""
        with self.turns[rater], self.lock:
            return self._ask(rater)

    def _ask(self, rater: str) -> dict[str, Any]:
        question = self.shown.get(rater) or self.queue.next(rater)
        if question is None:
            return {"question": None, "progress": self._progress(rater)}
        self.shown[rater] = question
        return {
            "question": self._describe(question, rater),
            "soon": self.queue.soon(rater, question),
            "progress": self._progress(rater),
        }

    def _describe(self, question: Question, rater: str) -> dict[str, Any]:
        about = self.pictures[question.left]
        sides = [name for name in question.key if name]
        if swapped(self.settings.task, question, rater):
            sides.reverse()
        return {
            "pictures": sides,
            "product": about.id if about.product else None,
            "caption": about.caption,
            "prompt": about.prompt,
        }

    def _progress(self, rater: str) -> dict[str, int]:
        return {"mine": len(self.queue.mine[rater])} | self.queue.progress()

    def vote(self, rater: str, given: Answer) -> dict[str, Any]:
        """Write a vote and return what comes next; in a second round also what others said before.

        Raises HTTPException 409 for what was not asked, 422 for no answer to it.
        """
        with self.turns[rater]:
            question = self.shown.get(rater)
            if question is None or {given.left, given.right} != set(question.key):
                raise HTTPException(409, "that picture is not the one you were asked about: reload the page")
            vote = self.store.add_vote(self._vote(rater, question, given))
            with self.lock:
                self.queue.answered(vote)
                del self.shown[rater]
                return self._ask(rater) | {"others": self._others(question)}

    def _vote(self, rater: str, question: Question, given: Answer) -> Vote:
        task, turned = self.settings.task, swapped(self.settings.task, question, rater)
        try:
            answer = as_seen(task, check_answer(task, given.answer), turned)
        except ValueError as error:
            raise HTTPException(422, f"no answer to this question: {error}") from None
        told = {"note": given.note, "x": given.x, "y": given.y, "seconds": given.seconds}
        asked = {"right": question.right, "round": self.settings.round, "kind": question.kind}
        return Vote(task, question.left, rater, answer, **asked, **told)  # type: ignore[arg-type]

    def _others(self, question: Question) -> list[dict[str, Any]]:
        """Return in a second round what was said in the first."""
        return [{"answer": dict(v.answer), "note": v.note} for v in self.earlier.get(question.key, [])]

    def undo(self, rater: str) -> dict[str, Any]:
        """Take back a rater's last vote, and ask again."""
        with self.turns[rater], self.lock:
            mine = self.queue.mine[rater]
            vote = mine[-1] if mine else None
            if vote and vote.id and {vote.left, vote.right or vote.left} <= self.pictures.keys():
                self.store.undo(vote.id)
                self.queue.undone(vote)
                self.shown[rater] = Question(vote.left, vote.right, vote.kind)
            return self._ask(rater)

    def move_on(self, rater: str) -> dict[str, Any]:
        """Go on to the pictures of another product and prompt."""
        with self.turns[rater], self.lock:
            self.queue.move_on(rater)
            self.shown.pop(rater, None)
            return self._ask(rater)
