"""How far people agree: with each other, with what is known, and with RFNet."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rfft.feedback.votes import ANSWERS, BETTER, DIMENSIONS, GSB, Picture, Vote
from rfft.metrics.wilson import wilson_interval
from rfft.types import LABELS

Question = tuple[str, str | None]


def verdict(vote: Vote) -> str:
    """Return a vote's one word: its first label, the better side, the overall verdict, the score."""
    answer = vote.answer
    found = {
        "labels": lambda: answer["labels"][0],
        "pairs": lambda: answer["better"],
        "gsb": lambda: answer[DIMENSIONS[0]],
        "scores": lambda: str(answer["score"]),
    }
    return str(found[vote.task]())


def majority(votes: Sequence[Vote]) -> str:
    """Return the word that most raters gave; of equally many the one that was given first."""
    return Counter(map(verdict, votes)).most_common(1)[0][0]


WORDS: Mapping[str, tuple[str, ...]] = {
    "labels": ANSWERS,
    "pairs": BETTER,
    "gsb": GSB,
    "scores": ("1", "2", "3", "4", "5"),
}


def figures(task: str, votes: Sequence[Vote], pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Return what a task's votes say, in the first round unless a question was asked again."""
    latest = _latest(votes)
    plain = [vote for vote in latest if vote.kind == "plain"]
    found: dict[str, Any] = {
        "votes": len(plain),
        "answers": {word: n for word in WORDS[task] if (n := Counter(map(verdict, plain))[word])},
        "fleiss_kappa": fleiss(task, plain),
        "krippendorff_alpha": krippendorff_alpha(task, plain),
        "raters": {name: rater_figures(name, latest, pictures) for name in sorted({v.rater for v in latest})},
        "seconds_per_vote": _median([v.seconds for v in plain]),
    }
    if task == "labels":
        found["rfnet"] = confusion(plain, pictures)
    if task == "gsb":
        found["gsb"] = {name: gsb(plain, name) for name in DIMENSIONS}
        found["sources"] = _compared(plain, pictures)
    return found


def warm_up() -> None:
    """Import the libraries behind the figures, which takes seconds, before anybody asks for them."""
    import krippendorff  # noqa: F401
    import statsmodels.stats.inter_rater  # noqa: F401


def _latest(votes: Sequence[Vote]) -> list[Vote]:
    """Return of each rater's votes on a question the last one; repeats stand beside it."""
    found = {(v.rater, v.left, v.right, v.kind): v for v in votes if not v.undone}
    return list(found.values())


def _by_question(votes: Sequence[Vote]) -> dict[Question, list[Vote]]:
    found: dict[Question, list[Vote]] = defaultdict(list)
    for vote in votes:
        found[vote.left, vote.right].append(vote)
    return found


def fleiss(task: str, votes: Sequence[Vote]) -> float | None:
    """Return Fleiss' kappa of the questions that have as many votes as most; None where it says nothing."""
    from statsmodels.stats.inter_rater import fleiss_kappa

    questions = [found for found in _by_question(votes).values() if len(found) > 1]
    if not questions:
        return None
    usual = Counter(map(len, questions)).most_common(1)[0][0]
    table = np.array(
        [[sum(verdict(v) == word for v in q) for word in WORDS[task]] for q in questions if len(q) == usual]
    )
    return _finite(fleiss_kappa(table)) if (table.sum(axis=0) > 0).sum() > 1 else None


def krippendorff_alpha(task: str, votes: Sequence[Vote]) -> float | None:
    """Return Krippendorff's alpha of all votes, whoever answered which; None where it says nothing."""
    import krippendorff

    voted = {question: found for question, found in _by_question(votes).items() if len(found) > 1}
    paired = [vote for found in voted.values() for vote in found]
    if len({verdict(vote) for vote in paired}) < 2:
        return None
    column = {question: i for i, question in enumerate(voted)}
    row = {name: i for i, name in enumerate(sorted({vote.rater for vote in paired}))}
    table = np.full((len(row), len(column)), np.nan)
    for vote in paired:
        table[row[vote.rater], column[vote.left, vote.right]] = WORDS[vote.task].index(verdict(vote))
    return _finite(
        krippendorff.alpha(table, level_of_measurement="ordinal" if task == "scores" else "nominal")
    )


def rater_figures(name: str, votes: Sequence[Vote], pictures: Mapping[str, Picture]) -> dict[str, Any]:
    """Return a rater's votes, seconds, and agreement with gold, the others' majority, and earlier answers."""
    mine = [vote for vote in votes if vote.rater == name]
    questions, plain = _by_question(votes), [vote for vote in mine if vote.kind == "plain"]
    against = [
        (verdict(vote), majority(others))
        for vote in plain
        if (others := [v for v in questions[vote.left, vote.right] if v.rater != name and v.kind == "plain"])
    ]
    known = [
        (verdict(v), str(pictures[v.left].label))
        for v in mine
        if v.left in pictures and pictures[v.left].label
    ]
    first = {(v.left, v.right): verdict(v) for v in plain}
    again = [
        (verdict(v), first[v.left, v.right])
        for v in mine
        if v.kind == "repeat" and (v.left, v.right) in first
    ]
    return {
        "votes": len(plain),
        "seconds_per_vote": _median([vote.seconds for vote in plain]),
        "with_majority": _share(against),
        "with_gold": _share(known),
        "with_self": _share(again),
    }


def confusion(votes: Sequence[Vote], pictures: Mapping[str, Picture]) -> dict[str, Any] | None:
    """Return how often RFNet says what most people say; rows are people's labels, columns RFNet's."""
    pairs = []
    for (left, _), found in _by_question(votes).items():
        given = pictures[left].probabilities if left in pictures else None
        if given and majority(found) in LABELS:
            pairs.append((majority(found), max(given, key=lambda label: given[label])))
    if not pairs:
        return None
    counts = Counter(pairs)
    return {"agree": _share(pairs), "confusion": [[counts[a, b] for b in LABELS] for a in LABELS]}


def gsb(votes: Sequence[Vote], dimension: str) -> dict[str, Any] | None:
    """Return Good/Same/Bad of the first source against the second: counts, score, interval and sign test.

    The score is (good - bad) / all, from -1 to 1, with the 95 % interval of a normal approximation; the sign
    test leaves out what is the same.
    """
    from scipy.stats import binomtest

    counts = Counter(vote.answer[dimension] for vote in votes if dimension in vote.answer)
    good, same, bad = (counts[word] for word in GSB)
    total = good + same + bad
    if not total:
        return None
    score = (good - bad) / total
    spread = 1.96 * float(np.sqrt(max((good + bad) / total - score**2, 0) / total))
    p = float(binomtest(good, good + bad).pvalue) if good + bad else 1.0
    return {
        "good": good, "same": same, "bad": bad, "score": score,
        "interval": [max(score - spread, -1.0), min(score + spread, 1.0)], "sign_test_p": p,
    }  # fmt: skip


def _compared(votes: Sequence[Vote], pictures: Mapping[str, Picture]) -> list[str] | None:
    for vote in votes:
        if vote.left in pictures and vote.right in pictures:
            return [pictures[vote.left].source, pictures[vote.right or ""].source]
    return None


def _share(pairs: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """Return how many pairs are equal, of how many, as a share with Wilson's 95 % interval."""
    if not pairs:
        return None
    equal = sum(a == b for a, b in pairs)
    return {
        "share": equal / len(pairs),
        "of": len(pairs),
        "interval": list(wilson_interval(equal, len(pairs))),
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
