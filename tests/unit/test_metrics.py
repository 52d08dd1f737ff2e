"""Every metric against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rfft.metrics import jackknife
from rfft.metrics.attempts import attempts
from rfft.metrics.bootstrap import bootstrap_interval
from rfft.metrics.classification import (
    agreement,
    average_precision,
    classification_report,
    confusion_matrix,
)
from rfft.metrics.colour import colourfulness
from rfft.metrics.diversity import mean_pairwise_distance, vendi_score
from rfft.metrics.features import (
    EfficientNetLite0,
    SameConv2d,
    fill_product,
    image_features,
    load_efficientnet_lite0,
)
from rfft.metrics.jackknife import jackknife_interval
from rfft.metrics.kid import kid, kid_interval, mmd2
from rfft.metrics.verdict import NOT_FINITE, Verdict, is_accepted, verdict_classes
from rfft.metrics.wilson import Z_95, wilson_interval


def test_wilson_interval() -> None:
    # 8 of 10 with z = 2: centre (0.8 + 0.2) / 1.4, spread sqrt(0.016 + 0.01) 2 / 1.4
    low, high = wilson_interval(8, 10, z=2.0)
    spread = 2 * math.sqrt(0.016 + 0.01) / 1.4
    assert (low, high) == pytest.approx((1 / 1.4 - spread, 1 / 1.4 + spread))
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # published table value


@pytest.mark.parametrize("n", [1, 3, 10, 96, 1000])
def test_wilson_interval_stays_within_0_and_1(n: int) -> None:
    assert wilson_interval(0, n)[0] == 0
    assert wilson_interval(n, n)[1] == 1
    assert wilson_interval(0, 0) == (0, 1)


def test_bootstrap_interval() -> None:
    assert bootstrap_interval([3.0, 3.0, 3.0]) == (3, 3)
    low, high = bootstrap_interval([0, 1] * 50)  # normal approximation: 0.5 -+ 1.96 * 0.5 / 10
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.015)
    assert bootstrap_interval([0, 1] * 50) == (low, high)


def test_bootstrap_interval_of_columns() -> None:
    columns = np.array([[0, 1.0]] * 50 + [[1, np.nan]] * 50)  # means 0.5 and 1
    low, high = bootstrap_interval(columns)  # the second one does not vary
    assert (low, high) == pytest.approx([(1 + bound) / 2 for bound in bootstrap_interval(columns[:, 0])])


def test_jackknife_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    error = values.std(ddof=1) / 2  # of a mean: the familiar one
    interval = jackknife_interval(4, lambda rows: values[rows].mean(), 4)
    assert interval == pytest.approx((4 - Z_95 * error, 4 + Z_95 * error))


@pytest.mark.parametrize("groups", [16, 8])  # one prompt each, two prompts each
def test_jackknife_tells_how_far_figures_spread(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 grids of 16 prompts; two pictures of a prompt are more alike than those of two prompts."""
    monkeypatch.setattr(jackknife, "MAX_GROUPS", groups)
    rng, n = np.random.default_rng(0), 16
    reference, scales = rng.normal(size=(40, 4)), np.array([3, 2, 1, 1])
    grids = scales * (0.4 + rng.normal(size=(60, n, 1, 4)) + 0.3 * rng.normal(size=(60, n, 2, 4)))
    metrics, widths = [], []
    for grid in grids:
        pictures = torch.from_numpy(grid)
        own = [mmd2(grid.reshape(-1, 4), reference), vendi_score(pictures.flatten(0, 1))]
        metrics.append(own)
        of_vendi = jackknife_interval(
            own[1], lambda rows, pictures=pictures: vendi_score(pictures[rows].flatten(0, 1)), n
        )
        widths.append(np.diff([kid_interval(own[0], grid, reference), of_vendi])[:, 0])
    errors = np.mean(widths, axis=0) / (2 * Z_95)
    np.testing.assert_allclose(errors, np.std(metrics, axis=0), rtol=0.3)


def test_mean_pairwise_distance() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # pairs: 1, 0, 1
    assert mean_pairwise_distance(features) == pytest.approx(2 / 3)
    assert mean_pairwise_distance(torch.ones(4, 5)) == pytest.approx(0)
    assert mean_pairwise_distance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(2)
    with pytest.raises(ValueError, match="two pictures"):
        mean_pairwise_distance(torch.ones(1, 5))


def test_vendi_score() -> None:
    assert vendi_score(torch.ones(4, 5)) == pytest.approx(1)
    assert vendi_score(torch.eye(4)) == pytest.approx(4)
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # eigenvalues 2/3 and 1/3
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert vendi_score(features) == pytest.approx(math.exp(entropy))


def test_mmd2() -> None:
    # kernel (xy + 1)^3: within x 1, within y 7^3 = 343, across (1 + 1 + 27 + 64) / 4 = 23.25
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    assert mmd2(x, y) == pytest.approx(1 + 343 - 2 * 23.25)


def test_kid() -> None:
    rng = np.random.default_rng(0)
    near, same, far = rng.normal(size=(60, 8)), rng.normal(size=(50, 8)), rng.normal(1.0, size=(50, 8))
    mean, std = kid(near, same)
    assert abs(mean) < 2 * std  # unbiased: about zero for one distribution
    assert kid(near, far)[0] > 10 * std
    assert kid(near, same, seed=3) == kid(near, same, seed=3)
    mean, std = kid(near[:50], same, subsets=2, subset_size=50)  # whole sets: the estimator itself
    assert (mean, std) == pytest.approx((mmd2(near[:50], same), 0))
    with pytest.raises(ValueError, match="subsets of 51"):
        kid(near, same, subset_size=51)


def test_colourfulness_of_red_beside_green() -> None:
    # rg = +-255: mean 0, deviation 255; yb = 127.5 in both: 255 + 0.3 * 127.5
    images = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).T.reshape(1, 3, 1, 3)
    product_is_the_blue_pixel = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 1, 1, 3)
    assert colourfulness(images, product_is_the_blue_pixel).item() == pytest.approx(293.25)
    assert colourfulness(torch.full((2, 3, 4, 4), 0.3), torch.zeros(2, 1, 4, 4)).tolist() == [0, 0]
    assert colourfulness(images, torch.ones(1, 1, 1, 3)).item() == 0  # nothing but product


def test_average_precision() -> None:
    assert average_precision([0.9, 0.8, 0.7], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([0.5, 0.5], [1, 0]) == pytest.approx(0.5)  # a tie is one step
    assert average_precision([0.5, 0.4], [0, 0]) == 0


def test_classification_report() -> None:
    probabilities = [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]]
    report = classification_report(probabilities, [0, 0, 0, 1, 1], ["a", "b", "c"])
    assert report["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert report["accuracy"] == pytest.approx(3 / 5)
    a, b, c = (report["classes"][name] for name in "abc")
    assert (a["precision"], a["recall"], a["f1"]) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (b["precision"], b["recall"], b["f1"]) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert (c["f1"], c["ap"], c["support"]) == (0, 0, 0)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)  # c has no samples
    assert a["ap"] == pytest.approx((1 + 1 + 3 / 4) / 3)  # a's scores rank 1, 2 and 4
    assert confusion_matrix([0, 1], [1, 1], 2).tolist() == [[0, 1], [0, 1]]


def test_what_is_not_finite_is_wrong_whatever_its_label() -> None:
    """argmax of NaN is 0, which would stand for "available"."""
    nan = float("nan")
    probabilities = [[0.7, 0.3], [nan, nan], [0.2, 0.8], [nan, 0.1]]
    report = classification_report(probabilities, [0, 0, 1, 1], ["available", "unavailable"])
    assert report["not_finite"] == 2 and report["accuracy"] == 0.5
    assert report["confusion"] == [[1, 0], [0, 1]]
    assert [report["classes"][name]["recall"] for name in report["classes"]] == [0.5, 0.5]
    assert report["classes"]["available"]["ap"] == pytest.approx(0.5 + 0.5 * 2 / 4)  # they rank last


def test_acceptance() -> None:
    outputs = torch.tensor([[2.0, 1.0], [1.0, 2.0], [torch.nan, 0.0], [torch.inf, 0.0], [1.0, -torch.inf]])
    assert verdict_classes(outputs).tolist() == [0, 1, NOT_FINITE, NOT_FINITE, NOT_FINITE]
    assert is_accepted(outputs).tolist() == [True, False, False, False, False]
    verdict = Verdict.of(torch.tensor([0.25, 0.75]))
    assert (verdict.label, verdict.accepted) == ("unavailable", False)
    assert verdict.probabilities == {"available": 0.25, "unavailable": 0.75}
    broken = Verdict.of(torch.full((5,), torch.nan))
    assert (broken.label, broken.accepted, broken.is_finite) == ("not_finite", False, False)


def test_agreement() -> None:
    first = [0] * 25 + [1] * 25
    second = [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15  # 35 of 50 alike, 0.5 by chance
    assert agreement(first, second, 2) == pytest.approx((0.7, 0.4))
    assert agreement([1, 1], [1, 1], 2) == (1, 1)


def test_attempts() -> None:
    made, succeeded = attempts([[0, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert made.tolist() == [2, 1, 3]
    assert succeeded.tolist() == [1, 2, 2]
    assert [found.tolist() for found in attempts([[1], [0]])] == [[1, 1], [1]]


def test_fill_product() -> None:
    image, alpha = torch.tensor([0.2, 0.2, 0.2]).reshape(1, 1, 1, 3), torch.tensor([0.0, 0.5, 1.0])
    filled = fill_product(image.expand(1, 3, 1, 3), alpha.reshape(1, 1, 1, 3))
    assert filled[0, 0, 0].tolist() == pytest.approx([0.2, 0.35, 0.5])


def test_same_convolution_pads_right_and_below() -> None:
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    # 4 pixels, stride 2: windows start at 0 and 2, the last one reaches over the right and lower edge
    assert conv(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9, 6], [6, 4]]
    assert conv(torch.ones(1, 1, 5, 5)).shape == (1, 1, 3, 3)


def test_efficientnet_lite0_loads_its_weights() -> None:
    network = load_efficientnet_lite0()  # a strict load: every key fits
    assert not network.training
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008
    images = torch.rand(3, 3, 64, 64)
    features = image_features(network, images, batch_size=2)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(network.spatial(images).mean(dim=(2, 3)), features, rtol=1e-4, atol=1e-5)
    assert network.spatial(images).shape == (3, 1280, 7, 7)
