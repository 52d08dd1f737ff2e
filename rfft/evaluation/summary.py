"""From verdicts and features of a grid of pictures to metrics, each with its resamples.

Shapes: N products and prompts, S seeds, K attempts, D features. `products` [N] numbers the product of each
row from 0: the unit of all intervals. Every function returns estimates by the names that trackers,
metrics.jsonl and summary.json have them under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.data.references import FEWEST
from rfft.metrics.attempts import attempts
from rfft.metrics.diversity import mean_pairwise_distance, vendi_score
from rfft.metrics.estimate import RESAMPLES, Estimate, mean_estimate, mean_of, share_estimate
from rfft.metrics.jackknife import jackknife_estimate
from rfft.metrics.kid import kid
from rfft.metrics.verdict import AVAILABLE, NOT_FINITE
from rfft.types import LABELS, label_names

Estimates = dict[str, Estimate]
Products = NDArray[np.int64]
NO_PROP = "none"


def number_products(names: Sequence[str]) -> Products:
    """Return the number [N] of each row's product, in the order in which they come."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def verdict_metrics(
    verdicts: Mapping[str, Tensor], products: Products, outputs: Mapping[str, int] | None = None
) -> Estimates:
    """Return available rate and rate of each failure, for each network that judged ([N,S] each).

    `outputs`: how many outputs a network has, where these are not LABELS. A verdict that is not finite is
    neither.
    """
    found: Estimates = {}
    for network, given in verdicts.items():
        found[f"available_rate_{network}"] = share_estimate(given == AVAILABLE, products)
    for network, given in verdicts.items():
        for i, label in enumerate(label_names((outputs or {}).get(network, len(LABELS)))):
            if i != AVAILABLE:
                found[f"{label}_{network}"] = share_estimate(given == i, products)
    if {"rfnet", "monitor"} <= verdicts.keys():
        found["gap"] = found["available_rate_rfnet"] - found["available_rate_monitor"]
    return found


def attempt_metrics(accepted: Tensor, products: Products) -> Estimates:
    """Return the mean attempts from [N,K], K where none was accepted, and the success at 1 .. K."""
    made, succeeded = attempts(accepted.numpy())
    found = {"attempts": mean_estimate(made, products)}
    return found | {
        f"success_at_{k}": share_estimate(hits, products) for k, hits in enumerate(succeeded.T, start=1)
    }


def alignment_metrics(
    read: Mapping[str, Tensor],
    asked: Sequence[Mapping[str, str]],
    classes: Mapping[str, Sequence[str]],
    products: Products,
) -> Estimates:
    """Compare what the probe read ([N,S] class indices per attribute) with what the N prompts asked for.

    The prop counts only where one is asked for: to leave out what nobody wants is no achievement. NOT_FINITE
    in place of an index is a miss.
    """
    by_attribute: Estimates = {}
    for name, found in read.items():
        wanted = [attributes.get(name, NO_PROP) for attributes in asked]
        targets = [NOT_FINITE if value == NO_PROP else list(classes[name]).index(value) for value in wanted]
        counts = torch.tensor(targets)[:, None] != NOT_FINITE
        hits = (found == torch.tensor(targets)[:, None]).double().where(counts, torch.nan)
        if counts.any():
            by_attribute[f"alignment_{name}"] = share_estimate(hits, products)
    if not by_attribute:
        return {}
    return {"alignment": mean_of(list(by_attribute.values())), **by_attribute}


def diversity_metrics(backgrounds: Tensor, products: Products) -> Estimates:
    """Measure features of backgrounds [N,S,D], NaN where there is no picture.

    "diversity" is the mean distance over the seeds of one prompt, "vendi" the Vendi score of all pictures.
    """
    known = backgrounds.isfinite().all(-1)
    found: Estimates = {}
    if backgrounds.shape[1] > 1:
        pairs = zip(backgrounds, known, strict=True)
        distances = [mean_pairwise_distance(x[there]) if there.sum() > 1 else np.nan for x, there in pairs]
        found["diversity"] = mean_estimate(distances, products)

    def vendi(kept: Products) -> float:
        rows = torch.from_numpy(np.isin(products, kept))
        pictures = backgrounds[rows][known[rows]]
        return vendi_score(pictures) if len(pictures) else np.nan

    return found | {"vendi": jackknife_estimate(vendi, products.max() + 1)}


def kid_metrics(features: Tensor, products: Products, reference: Tensor) -> Estimates:
    """Measure KID of pictures' features [N,S,D] to those of held-out available ones [M,D].

    Nothing is returned for pictures of fewer than two products.
    """
    known = features.isfinite().all(-1).numpy()
    if known.sum() < FEWEST or len(np.unique(products[known.any(axis=1)])) < 2:
        return {}
    pictures = features.flatten(0, 1).numpy()
    return {"kid": kid(pictures, np.repeat(products, features.shape[1]), reference.numpy())}


def mean_metrics(name: str, values: Tensor, products: Products) -> Estimates:
    """Return the mean of a metric of every picture [N,S]; NaN is no value."""
    return {name: mean_estimate(values, products)}


def describe_intervals(products: Products) -> dict[str, Any]:
    """Say what the intervals in a summary are, and of what: their level, unit and method."""
    return {
        "level": 0.95,
        "unit": "product",
        "products": int(products.max()) + 1,
        "method": f"cluster bootstrap: whole products are drawn, {RESAMPLES} resamples, percentiles",
        "vendi": "delete-one-product jackknife, as repeated pictures would distort it",
        "change": "paired: both models on the same resampled products, prompts and noise",
    }


def as_json(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Return {"value", "low", "high"} for each estimate that has a value; an interval is not always there."""
    found: dict[str, dict[str, float]] = {}
    for name, estimate in estimates.items():
        if not np.isfinite(estimate.value):
            continue
        interval = estimate.interval()
        found[name] = {"value": estimate.value}
        if interval is not None:
            found[name] |= {"low": interval[0], "high": interval[1]}
    return found
