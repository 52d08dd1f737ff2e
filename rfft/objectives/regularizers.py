"""What keeps the model near its reference: a number from both predictions at the same x."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from rfft.diffusion.losses import l_cc, l_kl
from rfft.types import Prediction


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


class KullbackLeibler:
    """(6) L_KL: how far the guided noise prediction has moved."""

    name = "l_kl"

    def __call__(self, theta: Prediction, ref: Prediction) -> Tensor:
        return l_kl(theta.guided.eps, ref.guided.eps)


REGULARIZERS = {
    "cc": "rfft.objectives.regularizers:ConsistentCondition",
    "kl": "rfft.objectives.regularizers:KullbackLeibler",
}
