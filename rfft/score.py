"""From verdicts and features of a grid of pictures to figures with intervals.

Shapes: N products and prompts, S seeds, K attempts, D features. Verdicts are indices into LABELS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rfft.metrics.attempts import attempts
from rfft.metrics.bootstrap import bootstrap_interval
from rfft.metrics.diversity import mean_pairwise_distance, vendi_score
from rfft.metrics.kid import kid
from rfft.metrics.wilson import wilson_interval
from rfft.types import LABELS, label_names

Share = dict[str, float]
NO_PROP = "none"


def share(hits: Tensor) -> Share:
    """Rate and Wilson 95 % interval of a boolean tensor."""
    n, found = hits.numel(), int(hits.sum())
    low, high = wilson_interval(found, n)
    return {"rate": found / n, "low": low, "high": high}


def verdict_figures(
    verdicts: Mapping[str, Tensor], outputs: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Available rate and rate of each failure, for each network that judged ([N,S] each).

    `outputs`: how many verdicts a network has, where these are not LABELS.
    """
    names = {name: label_names((outputs or {}).get(name, len(LABELS))) for name in verdicts}
    return {
        "available_rate": {name: share(found == 0) for name, found in verdicts.items()},
        "failures": {
            name: {label: share(found == i) for i, label in enumerate(names[name]) if i}
            for name, found in verdicts.items()
        },
    }


def attempt_figures(accepted: Tensor) -> dict[str, Any]:
    """Recurrent generation, from [N,K]: mean attempts (K where none was accepted), success at 1 .. K."""
    found = attempts(accepted.numpy())
    low, high = bootstrap_interval(attempts_made(accepted))
    return {
        "attempts": found["mean"],
        "attempts_interval": [low, high],
        "max_attempts": accepted.shape[1],
        "success_at": found["success_at"],
    }


def attempts_made(accepted: Tensor) -> list[int]:
    """Attempts until the first accepted one, K without any."""
    return [int(row.int().argmax()) + 1 if row.any() else len(row) for row in accepted]


def alignment_figures(
    read: Mapping[str, Tensor], asked: Sequence[Mapping[str, str]], classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What the probe read ([N,S] class indices per attribute) against what the N prompts asked for.

    The prop counts only where one is asked for: to leave out what nobody wants is no achievement.
    """
    by_attribute: dict[str, Share] = {}
    for name, found in read.items():
        wanted = [i for i, attributes in enumerate(asked) if attributes.get(name, NO_PROP) != NO_PROP]
        if wanted:
            targets = found.new_tensor([list(classes[name]).index(asked[i][name]) for i in wanted])
            by_attribute[name] = share(found[wanted] == targets[:, None])
    if not by_attribute:
        return {}
    mean = float(np.mean([figure["rate"] for figure in by_attribute.values()]))
    return {"alignment": mean, "alignment_by": by_attribute}


def diversity_figures(backgrounds: Tensor) -> dict[str, Any]:
    """Features of backgrounds [N,S,D]: distance over the seeds of one prompt; Vendi score of all pictures."""
    figures: dict[str, Any] = {"vendi": vendi_score(backgrounds.flatten(0, 1))}
    if backgrounds.shape[1] > 1:
        distances = [mean_pairwise_distance(seeds) for seeds in backgrounds]
        figures |= {
            "diversity": float(np.mean(distances)),
            "diversity_interval": list(bootstrap_interval(distances)),
        }
    return figures


def mean_figures(name: str, values: Tensor) -> dict[str, Any]:
    """A figure of every picture [N,S]: its mean, and the interval of that over the N."""
    per_prompt = values.double().mean(dim=1).numpy()
    return {name: float(per_prompt.mean()), f"{name}_interval": list(bootstrap_interval(per_prompt))}


def kid_figures(features: Tensor, reference: Tensor) -> dict[str, Any]:
    """KID of pictures' features [N*S,D] to those of held-out available ones [M,D]."""
    mean, deviation = kid(features.numpy(), reference.numpy())
    return {"kid": mean, "kid_std": deviation}
