"""What networks say of pictures, and what a training changed about it.

Shapes: N pictures, K outputs of a network. A verdict is an index into label_names(K), or NOT_FINITE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rfft.metrics.verdict import AVAILABLE, NOT_FINITE
from rfft.types import label_names

# By the names that metrics have them under.
NETWORKS = {"rfnet": "RFNet", "monitor": "monitor", "judge": "judge"}


def verdict_name(verdict: int, outputs: int) -> str:
    """Return a verdict as people read it; `outputs`: how many outputs the network has."""
    return "not finite" if verdict == NOT_FINITE else label_names(outputs)[verdict].replace("_", " ")


def recorded_verdicts(probabilities: Sequence[Sequence[float] | None]) -> Tensor:
    """Return the verdicts [N] of the rows in evaluation.json, where null stands for what was not finite."""
    verdicts = [
        NOT_FINITE if row is None else max(range(len(row)), key=row.__getitem__) for row in probabilities
    ]
    return torch.tensor(verdicts, dtype=torch.long)


def count_changes(base: Tensor, tuned: Tensor) -> dict[str, int]:
    """Count what became available and what broke, from verdicts [N] before and after."""
    before, after = base == AVAILABLE, tuned == AVAILABLE
    return {
        "pictures": len(base),
        "available_before": int(before.sum()),
        "fixed": int((after & ~before).sum()),
        "broken": int((before & ~after).sum()),
    }


def changes_by_network(states: Sequence[Mapping[str, Tensor]]) -> dict[str, dict[str, int]]:
    """Count the changes for each network that judged both states."""
    base, tuned = states
    return {
        name: count_changes(base[name], tuned[name]) for name in NETWORKS if name in base and name in tuned
    }
