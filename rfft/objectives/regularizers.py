"""What keeps the model near its reference: a number from both predictions at the same x.

Each known one has a `drift` beside its loss: the same distance as a share of the reference's own size, so
that 0.02 means two per cent for any base, latent size and noise level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rfft.diffusion.losses import l_cc, l_kl, l_norm, norm_growth, relative_distance
from rfft.errors import UserError
from rfft.types import Prediction
from rfft.utils.registry import construct


class Regularizer(Protocol):
    """A distance of the trained model's prediction from the reference's; anybody's own has this form."""

    name: str  # under which it is logged

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        """Return a scalar, differentiable in `theta`."""


class ConsistentCondition:
    """(8) L_CC: how far the text's direction of steering has turned."""

    name = "l_cc"

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        return l_cc(theta.g, ref.g)

    def drift(self, theta: Prediction, ref: Prediction) -> Tensor:
        """Return ||g_theta - g_ref|| / ||g_ref||, the mean over the batch."""
        return relative_distance(theta.g, ref.g)


class KullbackLeibler:
    """(6) L_KL: how far the guided noise prediction has moved."""

    name = "l_kl"

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        return l_kl(theta.guided.eps, ref.guided.eps)

    def drift(self, theta: Prediction, ref: Prediction) -> Tensor:
        """Return ||eps_theta - eps_ref|| / ||eps_ref||, the mean over the batch."""
        return relative_distance(theta.guided.eps, ref.guided.eps)


class NormGrowth:
    """A hinge on the growth of the guided prediction's norm over the reference's (NormGuard, 2606.27771)."""

    name = "l_norm"

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        return l_norm(theta.guided.eps, ref.guided.eps)

    drift = __call__  # it is a share as it is


class Sum:
    """Several regularizers as one: the weighted sum of them."""

    def __init__(self, terms: Sequence[tuple[float, Regularizer]]) -> None:
        self.terms = terms
        self.name = "+".join(term.name for _, term in terms)

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        return torch.stack([weight * term(theta, ref) for weight, term in self.terms]).sum()

    def drift(self, theta: Prediction, ref: Prediction) -> Tensor:
        """Return the largest of the terms' drifts."""
        return torch.stack([drift(term, theta, ref) for _, term in self.terms]).amax()


class Regularized(NamedTuple):
    """What a regularizer says at one step: its loss, and detached scalars to be logged."""

    loss: Tensor
    scalars: dict[str, Tensor]


def measure(regularizer: Regularizer, theta: Prediction, ref: Prediction, weight: float = 1.0) -> Regularized:
    """Return weight * regularizer, its drift, the norm's growth, and a sum's terms by their own names."""
    loss = regularizer(theta, ref)
    with torch.no_grad():
        growth = norm_growth(theta.guided.eps, ref.guided.eps).mean()
        scalars = {"drift": drift(regularizer, theta, ref), "norm_growth": growth}
        if isinstance(regularizer, Sum):
            scalars |= {term.name: term(theta, ref) for _, term in regularizer.terms}
    return Regularized(loss if weight == 1 else weight * loss, scalars)


def drift(regularizer: Regularizer, theta: Prediction, ref: Prediction) -> Tensor:
    """Return the regularizer's drift, or its own value where it knows none."""
    own = getattr(regularizer, "drift", regularizer)
    found: Tensor = own(theta, ref)
    return found.detach()


REGULARIZERS = {
    "cc": "rfft.objectives.regularizers:ConsistentCondition",
    "kl": "rfft.objectives.regularizers:KullbackLeibler",
    "norm": "rfft.objectives.regularizers:NormGrowth",
}


def make_regularizer(text: str) -> Regularizer | None:
    """Return the regularizer that a config's text names: a name, a dotted path, or "cc + 20 * norm".

    "none" is None. Raises UserError for what is not known or cannot be read.
    """
    if text == "none":
        return None
    terms = []
    for part in re.split(r"(?<!\d[eE])\+", text):  # not that of 1e+3
        weight, star, name = part.rpartition("*")
        try:
            factor = float(weight) if star else 1.0
        except ValueError:
            raise UserError(
                f"objective.regularizer {text!r}: {weight.strip()!r} is no number; write cc + 20 * norm"
            ) from None
        terms.append((factor, construct("objective.regularizer", name.strip(), {}, REGULARIZERS)))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Sum(terms)


def step_weights(points: Sequence[float], steps: int, last: int) -> Sequence[float]:
    """Return a weight for each of the S steps: points spread over the `last` ones, on straight lines between.

    () where all are 1.
    """
    if set(points) == {1.0}:
        return ()
    places = np.linspace(steps - last, steps - 1, len(points))
    return [float(weight) for weight in np.interp(np.arange(steps), places, points)]
