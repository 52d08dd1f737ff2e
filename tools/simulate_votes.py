"""Votes of simulated raters on AdWorld's labelled scenes: something to try preference and aesthetics on.

    python tools/simulate_votes.py SCENES STORE --raters 3 --seed 0

SCENES is a folder that `rfft adworld draw` wrote. The raters know the labels: this stands for people, and
says nothing of them. What they go by:

pairs   an available picture is better than a faulty one, else the same; 10 % of the answers are drawn anew
gsb     quality as above; overall the same; alignment: the left picture, whose own prompt is shown, is better
        unless both have it
scores  5 for an available picture, by fault 4 to 1, each rater one off at random times; the fault as a defect
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import BETTER, Picture, Vote
from rfft.review.sources import read_pictures
from rfft.types import LABELS

SCORE = dict(zip(LABELS, (5, 2, 3, 4, 1), strict=True))
DEFECT = dict(zip(LABELS[1:], ("floats", "wrong size", "drowns", "grown part"), strict=True))
NOISE = 0.1  # share of answers drawn anew
GSB = dict(zip(BETTER, ("good", "bad", "same"), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scenes", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("--raters", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pictures = read_pictures(given.scenes, given.scenes)
    store = VoteStore(given.store, create=True)
    store.add_pictures(pictures)
    rng = np.random.default_rng(given.seed)
    for vote in votes(pictures, [f"simulated-{i}" for i in range(given.raters)], rng):
        store.add_vote(vote)
    store.close()


def votes(pictures: list[Picture], raters: list[str], rng: np.random.Generator) -> Iterator[Vote]:
    """Yield each rater's votes: every picture is scored, and compared with another one as left and right."""
    others = rng.permutation(len(pictures))
    for first, other in zip(pictures, others, strict=True):
        second = pictures[int(other)]
        for rater in raters:
            yield Vote("scores", first.id, rater, score(first, rng))
            if first.id != second.id:
                quality = noisy(better(first, second), rng)
                yield Vote("pairs", first.id, rater, {"better": quality}, second.id)
                yield Vote("gsb", first.id, rater, rounds(first, second, quality, rng), second.id)


def better(first: Picture, second: Picture) -> str:
    """Return which of two pictures can be used."""
    usable = [picture.label == LABELS[0] for picture in (first, second)]
    return BETTER[2] if usable[0] == usable[1] else BETTER[0 if usable[0] else 1]


def noisy(answer: str, rng: np.random.Generator) -> str:
    """Return the answer, or now and then another one."""
    return str(rng.choice(BETTER)) if rng.random() < NOISE else answer


def rounds(first: Picture, second: Picture, quality: str, rng: np.random.Generator) -> dict[str, str]:
    """Return Good/Same/Bad of two pictures beside the prompt of the first."""
    alignment = noisy(BETTER[2] if first.prompt == second.prompt else BETTER[0], rng)
    found = {"overall": quality, "alignment": alignment, "quality": quality}
    return {name: GSB[answer] for name, answer in found.items()}


def score(picture: Picture, rng: np.random.Generator) -> dict[str, object]:
    """Return a score near the label's, and its defect."""
    label = str(picture.label)
    value = int(np.clip(SCORE[label] + rng.choice([-1, 0, 1], p=[0.15, 0.7, 0.15]), 1, 5))
    return {"score": value, "defects": [DEFECT[label]] if label in DEFECT else []}


if __name__ == "__main__":
    main()
