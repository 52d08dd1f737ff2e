"""The rule by which settings are chosen on validation products, the same for every method.

Among the candidates without a warning (guard(): alignment, diversity, and the gap where there is a monitor)
the highest available rate of the monitor, or of RFNet where there is none. Where all have a warning, the one
that keeps most: its smaller share of the base model's alignment and diversity is the largest. Of equal ones
the first. The judge has no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rfft.config.schema import EvaluateConfig
from rfft.evaluation.guard import guard
from rfft.evaluation.guardrails import guarded

Values = Mapping[str, float]


def choose(base: Values, candidates: Sequence[Values], settings: EvaluateConfig) -> int:
    """Return the number of the candidate that is chosen, by its metrics and the base model's."""
    scores = {i: guard(base, found, settings)[1] for i, found in enumerate(candidates)}
    known = {i: score for i, score in scores.items() if score is not None}
    if known:
        return max(known, key=lambda i: known[i])
    return max(range(len(candidates)), key=lambda i: kept(base, candidates[i]))


def kept(base: Values, tuned: Values) -> float:
    """Return the smallest share that is left of what the guardrails look at; 0 where nothing is measured."""
    shares = [tuned[name] / base[name] for name in guarded(base) if name in tuned and base.get(name)]
    return min(shares, default=0.0)
