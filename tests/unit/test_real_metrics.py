"""Metrics for real bases: FID, product fidelity, rankings, by hand or against a formula of another form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from rfft.errors import UserError
from rfft.metrics.fid import fid
from rfft.metrics.fidelity import product_fidelity
from rfft.metrics.library import torchmetrics
from rfft.metrics.ranking import overall, rank_correlation, win_rates


def test_fid_of_two_small_sets() -> None:
    """Means 0 and (3, 0); variances 2 and 8, 2 and 2, no covariance: 9 + (sqrt 8 - sqrt 2)^2 + 0."""
    a = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * math.sqrt(1.5)
    b = a * torch.tensor([2.0, 1]) + torch.tensor([3.0, 0])
    assert fid(b, a) == pytest.approx(9 + (math.sqrt(8) - math.sqrt(2)) ** 2, rel=1e-5)
    assert fid(a, a) == pytest.approx(0, abs=1e-5)


def test_fid_is_the_formula_with_symmetric_roots() -> None:
    """tr (S1 S2)^(1/2) = tr (S1^(1/2) S2 S1^(1/2))^(1/2), by eigenvalues of symmetric matrices alone."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(40, 5)) + 0.5
    s1, s2 = np.cov(x.T), np.cov(y.T)
    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(values) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert fid(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-4)


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM's map in its textbook form, valid away from the border."""
    window = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    kernel = (window / window.sum())[:, None] @ (window / window.sum())[None]
    kernel = kernel.repeat(3, 1, 1, 1)

    def blur(z: Tensor) -> Tensor:
        return F.conv2d(z, kernel, padding=5, groups=3)

    mx, my = blur(x), blur(y)
    vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return (2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))


def test_product_fidelity() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 40, 40, generator=generator)
    alpha = torch.zeros(2, 1, 40, 40)
    alpha[0, :, 12:28, 12:24] = 1
    alpha[1, :, 20:30, 12:28] = 0.7
    shown = truth.clone()
    shown[0] += 0.1 * alpha[0]  # 20 dB within the product
    shown[1, :, :5] = 0  # away from the product, and from its windows
    psnr, ssim = product_fidelity(shown, truth, alpha)
    assert psnr[0].item() == pytest.approx(20, abs=1e-3) and psnr[1] == math.inf
    expected = similarity(shown, truth)[0, :, 12:28, 12:24].mean()
    assert_close(ssim[0], expected, rtol=0, atol=1e-4)
    assert 0.5 < ssim[0] < 0.99 and ssim[1].item() == pytest.approx(1)


def test_win_rates() -> None:
    """p of a logit log 3 is 3/4: ahead by 1/2; log(1.1 / 0.9) is ahead by 0.1."""
    near, far = math.log(1.1 / 0.9), math.log(3)
    scores = torch.tensor([[far, near, 0.0, 0.0], [0.0, 0.0, 0.0, far]])
    assert win_rates(scores, tie=0.0)[0, 1].item() == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert win_rates(scores, tie=0.2)[0, 1].item() == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert win_rates(scores, tie=0.6).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    three = win_rates(torch.tensor([[3.0, 3.0], [2.0, 2.0], [1.0, 4.0]]), tie=0.0)
    assert_close(three + three.T, torch.ones(3, 3))
    assert overall(three).tolist() == [0.75, 0.25, 0.5]


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 x 4 / (4 x 15)
    assert rank_correlation([0.1, 0.2, 0.3, 0.9], [5, 1, 9, 7]) == pytest.approx(0.6, abs=1e-5)
    # a tie shares its ranks: 1, 2.5, 2.5 against 1, 2, 3
    assert rank_correlation([1, 5, 5], [1, 2, 3]) == pytest.approx(math.sqrt(0.75), abs=1e-5)
    assert rank_correlation([1, 1], [1, 2]) is None


def test_without_the_library() -> None:
    with pytest.raises(UserError, match="pip install 'rfft\\[metrics\\]'"):
        torchmetrics("no_such_module")
