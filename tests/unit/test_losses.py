"""Hand-worked numbers for the terms of the objective."""

from __future__ import annotations

import math

import torch
from torch import nn, tensor
from torch.testing import assert_close

from rfft.diffusion.losses import f_ac, l_cc, l_kl
from rfft.rewards.availability import Ensemble


def test_f_ac() -> None:
    assert_close(f_ac(torch.zeros(3, 5)), tensor(math.log(5)))
    # -log(3 / (3 + 4 * 1)) and -log(1 / 7), averaged
    logits = torch.zeros(2, 5)
    logits[0, 0] = math.log(3)
    logits[1, 2] = math.log(3)
    assert_close(f_ac(logits), tensor((math.log(7 / 3) + math.log(7)) / 2))
    assert_close(f_ac(logits[1:], target=2), tensor(math.log(7 / 3)))


def test_an_ensemble_says_the_mean_of_its_networks_probabilities() -> None:
    """One says 3/4 and 1/4, the other 1/4 and 3/4."""
    first, second = nn.Module(), nn.Module()
    first.forward = lambda image, batch: tensor([[math.log(3.0), 0.0]])  # type: ignore[method-assign]
    second.forward = lambda image, batch: tensor([[7.0, 7.0 + math.log(3.0)]])  # type: ignore[method-assign]
    found = Ensemble([first, second])(torch.zeros(1, 3, 2, 2), None)
    assert_close(found.exp(), tensor([[0.5, 0.5]]))


def test_f_ac_is_computed_in_fp32() -> None:
    assert f_ac(torch.zeros(1, 5, dtype=torch.bfloat16)).dtype == torch.float32


def test_l_kl() -> None:
    eps = tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    eps_ref = tensor([1.0, 0.0, 3.0, 0.0]).reshape(1, 4, 1, 1)
    assert_close(l_kl(eps, eps_ref), tensor(0.5 * (4 + 16) / 4))


def test_l_kl_is_the_divergence_of_the_two_gaussians() -> None:
    x, eps, eps_ref, ab = torch.randn(4, 1, 4, 1, 1, dtype=torch.float64).unbind(0)[:3] + (tensor(0.3),)
    variance = (1 - ab) / ab
    mean, mean_ref = ((x - (1 - ab).sqrt() * e) / ab.sqrt() for e in (eps, eps_ref))
    p, p_ref = (torch.distributions.Normal(m, variance.sqrt().double()) for m in (mean, mean_ref))
    assert_close(l_kl(eps, eps_ref), torch.distributions.kl_divergence(p, p_ref).mean())


def test_l_cc_is_a_norm_per_sample_then_a_mean() -> None:
    g = torch.zeros(2, 2, 1, 2)
    g[0, 0, 0, 0], g[0, 1, 0, 1] = 3.0, 4.0  # norm 5
    g[1, 0, 0, 0] = 1.0  # norm 1
    assert_close(l_cc(g, torch.zeros_like(g)), tensor(3.0))


def test_no_difference_no_loss_and_no_gradient() -> None:
    g_ref = torch.randn(2, 4, 3, 3)
    for loss in (l_cc, l_kl):
        g = g_ref.clone().requires_grad_()
        value = loss(g, g_ref)
        value.backward()
        assert value == 0
        assert g.grad is not None and torch.equal(g.grad, torch.zeros_like(g))
