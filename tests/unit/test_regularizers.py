"""Regularizers, their sums and weights by hand, and the beta that holds one of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from rfft.config.load import config_from
from rfft.diffusion.losses import l_norm
from rfft.errors import UserError
from rfft.objectives.dual import RANGE, DualBeta
from rfft.objectives.regularizers import drift, make_regularizer, measure, step_weights
from rfft.types import Denoised, Prediction


def latents(*rows: list[float]) -> Tensor:
    return tensor(rows).reshape(len(rows), 1, 1, -1)


def prediction(eps: Tensor, g: Tensor) -> Prediction:
    return Prediction(Denoised(torch.zeros_like(eps), eps), g)


def test_l_norm_by_hand() -> None:
    """Norm 10 instead of 5: it has doubled; norm 3 instead of 5 costs nothing and has no gradient."""
    eps = latents([6.0, 8.0], [0.0, 3.0]).requires_grad_()
    loss = l_norm(eps, latents([3.0, 4.0], [4.0, 3.0]))
    assert_close(loss, tensor((1.0 + 0.0) / 2))
    loss.backward()
    assert_close(eps.grad, latents([0.6 / 5 / 2, 0.8 / 5 / 2], [0.0, 0.0]))


THETA = prediction(latents([6.0, 8.0]), latents([0.0, 1.0]))
REF = prediction(latents([3.0, 4.0]), latents([0.0, 4.0]))


@pytest.mark.parametrize(
    ("text", "loss", "share"),
    [
        ("cc", 3.0, 0.75),  # of 4
        ("kl", 0.5 * (9 + 16) / 2, 1.0),  # the difference is as long as the reference
        ("norm", 1.0, 1.0),
        ("cc + 20 * norm", 3.0 + 20.0, 1.0),
        ("1e+1*kl+0.5*cc", 62.5 + 1.5, 1.0),
        ("2*cc", 6.0, 0.75),
    ],
)
def test_losses_and_drifts_by_hand(text: str, loss: float, share: float) -> None:
    regularizer = make_regularizer(text)
    assert regularizer is not None
    assert_close(regularizer(THETA, REF), tensor(loss))
    assert_close(drift(regularizer, THETA, REF), tensor(share))
    found = measure(regularizer, THETA, REF, weight=0.5)
    assert_close(found.loss, tensor(loss / 2))
    assert_close(found.scalars["drift"], tensor(share))
    assert_close(found.scalars["norm_growth"], tensor(1.0))  # from 5 to 10


def test_a_sums_terms_are_logged() -> None:
    regularizer = make_regularizer("cc + 20 * norm")
    assert regularizer is not None and regularizer.name == "l_cc+l_norm"
    scalars = measure(regularizer, THETA, REF).scalars
    assert (scalars["l_cc"], scalars["l_norm"]) == (3.0, 1.0)


def test_the_model_that_is_its_reference_has_not_drifted() -> None:
    for name in ("cc", "kl", "norm", "cc+kl"):
        regularizer = make_regularizer(name)
        assert regularizer is not None and measure(regularizer, REF, REF).scalars["drift"] == 0


def test_what_cannot_be_read() -> None:
    assert make_regularizer("none") is None
    for text, told in (
        ("x*cc", "'x' is no number; write cc"),
        ("cc+l2", "'l2' is not known; give cc, kl, norm"),
    ):
        with pytest.raises(UserError, match=told):
            make_regularizer(text)


def test_step_weights_by_hand() -> None:
    assert step_weights([1.0], 5, 3) == ()
    assert step_weights([2.0, 0.0], 5, 3) == [2.0, 2.0, 2.0, 1.0, 0.0]  # over steps 2, 3, 4
    assert step_weights([1.0, 2.0, 4.0], 4, 3) == [1.0, 1.0, 2.0, 4.0]
    assert step_weights([3.0], 2, 2) == [3.0, 3.0]


def test_the_dual_update_by_hand() -> None:
    """It waits for the target, then goes up by e^rate at most and down by e^-rate."""
    beta = DualBeta(target=0.02, start=0.5, rate=0.1)
    beta.update(0.0)
    beta.update(0.019)
    assert beta.value == 0.5  # not wound down while the model was still on its way
    beta.update(0.03)
    assert beta.value == pytest.approx(0.5 * math.exp(0.05))
    beta.update(1.0)
    assert beta.value == pytest.approx(0.5 * math.exp(0.15))
    beta.update(0.02)
    assert beta.value == pytest.approx(0.5 * math.exp(0.15))
    beta.update(0.0)
    assert beta.value == pytest.approx(0.5 * math.exp(0.05))


def test_the_dual_beta_does_not_wind_up() -> None:
    """After any time at its limit the first step the other way already shows."""
    beta = DualBeta(target=0.02, start=0.5, rate=0.5)
    for _ in range(1000):
        beta.update(1.0)
    assert beta.value == 0.5 * RANGE
    beta.update(0.0)
    assert beta.value == pytest.approx(0.5 * RANGE * math.exp(-0.5))
    for _ in range(1000):
        beta.update(0.0)
    assert beta.value == 0.5 / RANGE


def test_the_dual_beta_holds_a_plant() -> None:
    """A model whose drift grows by a push over beta: it settles at its target."""
    beta, found = DualBeta(target=0.02, start=0.1, rate=0.1), 0.0
    for _ in range(300):
        found += 0.3 * (0.01 / beta.value - found)
        beta.update(found)
    assert found == pytest.approx(0.02, rel=0.02) and beta.value == pytest.approx(0.5, rel=0.02)


def test_its_state_is_all_that_it_knows() -> None:
    first, second = (DualBeta(0.02, 0.5, 0.1) for _ in range(2))
    for drifted in (0.05, 0.01, 0.03):
        first.update(drifted)
    second.load_state_dict(first.state_dict())
    first.update(0.04)
    second.update(0.04)
    assert first.value == second.value


def test_configs_of_beta() -> None:
    assert config_from({"objective.beta": 30}).objective.beta == 30
    assert config_from({}, ["objective.beta=0.5"]).objective.beta == 0.5
    assert config_from({}, ["objective.beta=auto"]).objective.beta == "auto"
    for wrong, told in (
        ({"objective.beta": "some"}, "objective.beta=some must be a number, 0 at least, or auto"),
        ({"objective.beta": -1}, "objective.beta is -1"),
        ({"objective.beta": "auto", "objective.regularizer": "none"}, "nothing to hold"),
        ({"objective.step_weights": []}, "must be numbers"),
        ({"objective.step_weights": [1.0, -1.0]}, "must be numbers, 0 at least"),
    ):
        with pytest.raises(UserError, match=told):
            config_from(wrong)
