"""From verdicts and features of a grid of pictures to metrics with intervals.

Shapes: N products and prompts, S seeds, K attempts, D features. Verdicts are indices into LABELS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfft.metrics.attempts import attempts
from rfft.metrics.bootstrap import bootstrap_interval
from rfft.metrics.diversity import mean_pairwise_distance, vendi_score
from rfft.metrics.jackknife import jackknife_interval
from rfft.metrics.kid import kid, kid_interval
from rfft.metrics.wilson import wilson_interval
from rfft.types import LABELS, label_names

Share = dict[str, float]
NO_PROP = "none"


def share(hits: Tensor) -> Share:
    """Rate and Wilson 95 % interval of a boolean tensor."""
    n, found = hits.numel(), int(hits.sum())
    low, high = wilson_interval(found, n)
    return {"rate": found / n, "low": low, "high": high}


def verdict_metrics(
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


def attempt_metrics(accepted: Tensor) -> dict[str, Any]:
    """Recurrent generation, from [N,K]: mean attempts (K where none was accepted), success at 1 .. K."""
    made, succeeded = attempts(accepted.numpy())
    n = len(made)
    return {
        "attempts": float(made.mean()),
        "attempts_interval": list(bootstrap_interval(made)),
        "max_attempts": accepted.shape[1],
        "success_at": (succeeded / n).tolist(),
        "success_at_interval": [list(wilson_interval(int(found), n)) for found in succeeded],
    }


def alignment_metrics(
    read: Mapping[str, Tensor], asked: Sequence[Mapping[str, str]], classes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What the probe read ([N,S] class indices per attribute) against what the N prompts asked for.

    The prop counts only where one is asked for: to leave out what nobody wants is no achievement.
    """
    by_attribute: dict[str, Share] = {}
    per_prompt: list[Tensor] = []  # [N] for each attribute, NaN where it does not count
    for name, found in read.items():
        wanted = [i for i, attributes in enumerate(asked) if attributes.get(name, NO_PROP) != NO_PROP]
        if wanted:
            targets = found.new_tensor([list(classes[name]).index(asked[i][name]) for i in wanted])
            hits = found[wanted] == targets[:, None]
            by_attribute[name] = share(hits)
            per_prompt.append(torch.full((len(asked),), torch.nan))
            per_prompt[-1][wanted] = hits.float().mean(dim=1)
    if not by_attribute:
        return {}
    mean = float(np.mean([figure["rate"] for figure in by_attribute.values()]))
    interval = list(bootstrap_interval(torch.stack(per_prompt, dim=1)))
    return {"alignment": mean, "alignment_interval": interval, "alignment_by": by_attribute}


def diversity_metrics(backgrounds: Tensor) -> dict[str, Any]:
    """Features of backgrounds [N,S,D]: distance over the seeds of one prompt; Vendi score of all pictures."""
    n = len(backgrounds)
    metrics: dict[str, Any] = {"vendi": _vendi(backgrounds)}
    if n > 1:
        interval = jackknife_interval(metrics["vendi"], lambda rows: _vendi(backgrounds[rows]), n)
        metrics["vendi_interval"] = list(interval)
    if backgrounds.shape[1] > 1:
        distances = [mean_pairwise_distance(seeds) for seeds in backgrounds]
        metrics |= {
            "diversity": float(np.mean(distances)),
            "diversity_interval": list(bootstrap_interval(distances)),
        }
    return metrics


def _vendi(backgrounds: Tensor) -> float:
    return vendi_score(backgrounds.flatten(0, 1))


def mean_metrics(name: str, values: Tensor) -> dict[str, Any]:
    """A figure of every picture [N,S]: its mean, and the interval of that over the N; NaN is no value."""
    per_prompt = values.double().nanmean(dim=1)
    return {
        name: float(per_prompt.nanmean()),
        f"{name}_interval": list(bootstrap_interval(per_prompt.numpy())),
    }


def kid_metrics(features: Tensor, reference: Tensor) -> dict[str, Any]:
    """KID of pictures' features [N,S,D] to those of held-out available ones [M,D]."""
    mean, deviation = kid(features.flatten(0, 1).numpy(), reference.numpy())
    metrics: dict[str, Any] = {"kid": mean, "kid_std": deviation}  # of subsets, as others report it
    if len(features) > 1:
        metrics["kid_interval"] = list(kid_interval(mean, features.numpy(), reference.numpy()))
    return metrics
