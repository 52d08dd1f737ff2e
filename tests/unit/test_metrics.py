"""Every metric against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rfft.metrics import jackknife
from rfft.metrics.attempts import attempts
from rfft.metrics.classification import (
    agreement,
    average_precision,
    classification_report,
    confusion_matrix,
)
from rfft.metrics.colour import colourfulness
from rfft.metrics.diversity import mean_pairwise_distance, vendi_score
from rfft.metrics.estimate import mean_estimate, mean_of, product_draws, share_estimate
from rfft.metrics.features import (
    EfficientNetLite0,
    SameConv2d,
    fill_product,
    image_features,
    load_efficientnet_lite0,
)
from rfft.metrics.jackknife import jackknife_estimate
from rfft.metrics.kid import kid
from rfft.metrics.verdict import NOT_FINITE, Verdict, is_accepted, verdicts_of
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


def test_products_are_resampled_not_pictures() -> None:
    """Four pictures of each of 50 products that are alike: as uncertain as 50 pictures, not as 200."""
    products = np.repeat(np.arange(50), 2)
    values = np.repeat(np.arange(50) % 2, 2)[:, None] * np.ones(2)  # two prompts x two seeds
    found = mean_estimate(values, products)
    low, high = found.interval()  # normal approximation: 0.5 -+ 1.96 * 0.5 / sqrt(50)
    assert found.value == 0.5 and (low, high) == pytest.approx((0.361, 0.639), abs=0.015)
    draws = product_draws(50)
    assert draws.shape == (2000, 50) and (draws.sum(axis=1) == 50).all()
    assert found.replicates[7] == pytest.approx((draws[7] * (np.arange(50) % 2)).sum() / 50)
    assert mean_estimate([1.0, 2.0], np.zeros(2, dtype=int)).interval() is None  # one product


def test_a_mean_is_over_all_pictures_that_have_a_value() -> None:
    found = mean_estimate([[10, np.nan], [20, 30], [np.nan, np.nan]], np.arange(3))
    assert found.value == 20
    low, high = found.interval()  # the first product alone; the second alone
    assert (low, high) == (10, 25)


def test_models_are_compared_by_pairs() -> None:
    """Products differ by far more than the models; the same product gains 1 on average."""
    rng, products = np.random.default_rng(0), np.arange(40)
    base = 100 * rng.normal(size=40)
    tuned = base + 1 + 0.5 * rng.normal(size=40)
    change = mean_estimate(tuned, products) - mean_estimate(base, products)
    error = 1.96 * (tuned - base).std(ddof=1) / math.sqrt(40)  # of a paired difference: the familiar one
    low, high = change.interval()
    assert change.value == pytest.approx((tuned - base).mean())
    assert (low, high) == pytest.approx((change.value - error, change.value + error), abs=0.03)
    assert np.diff(mean_estimate(tuned, products).interval())[0] > 100 * error
    with pytest.raises(ValueError, match="same products"):
        mean_estimate(tuned, products) - jackknife_estimate(lambda kept: tuned[kept].mean(), 40)


def test_a_share_of_0_or_1_still_has_an_interval() -> None:
    """Wilson's of as many trials as there are products: 4 of 4, not 8 of 8."""
    products = np.repeat(np.arange(4), 2)
    assert share_estimate(np.ones(8), products).interval() == wilson_interval(4, 4)
    assert share_estimate(np.zeros(8), products).interval() == wilson_interval(0, 4)
    known = np.where(products < 3, 1, np.nan)  # nobody asked the fourth
    assert share_estimate(known, products).interval() == wilson_interval(3, 3)
    both = share_estimate(np.ones(8), products) - share_estimate(np.ones(8), products)
    assert both.interval() == (0, 0)


def test_mean_of_metrics() -> None:
    one, other = (share_estimate(x, np.arange(4)) for x in ([0, 1, 0, 1], [1, np.nan, np.nan, 0]))
    found = mean_of([one, other])
    assert found.value == 0.5
    lacking = np.isnan(other.replicates)  # neither product that has a value was drawn
    assert lacking.any() and np.array_equal(found.replicates[lacking], one.replicates[lacking])
    assert found.replicates[~lacking] == pytest.approx((one.replicates + other.replicates)[~lacking] / 2)


def test_jackknife() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    error = values.std(ddof=1) / 2  # of a mean: the familiar one
    found = jackknife_estimate(lambda kept: values[kept].mean(), 4)
    assert found.value == 4
    assert found.interval() == pytest.approx((4 - Z_95 * error, 4 + Z_95 * error))
    assert jackknife_estimate(lambda kept: values[kept].mean(), 1).interval() is None


@pytest.mark.parametrize("groups", [16, 8])  # one product each, two products each
def test_intervals_tell_how_far_metrics_spread(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 grids of 16 products; two pictures of a product are more alike than those of two products."""
    monkeypatch.setattr(jackknife, "MAX_GROUPS", groups)
    rng, n = np.random.default_rng(0), 16
    reference, products = rng.normal(size=(40, 8)), np.repeat(np.arange(16), 2)
    grids = 0.4 + rng.normal(size=(60, n, 1, 8)) + 0.3 * rng.normal(size=(60, n, 2, 8))
    found = []
    for grid in grids:
        of_kid = kid(grid.reshape(-1, 8), products, reference)
        pictures = torch.from_numpy(grid[..., :4] * [3, 2, 1, 1])
        of_vendi = jackknife_estimate(
            lambda kept, pictures=pictures: vendi_score(pictures[kept].flatten(0, 1)), n
        )
        found.append([(e.value, np.diff(e.interval())[0] / (2 * Z_95)) for e in (of_kid, of_vendi)])
    values, errors = np.moveaxis(np.array(found), 2, 0)
    np.testing.assert_allclose(errors.mean(axis=0), values.std(axis=0), rtol=0.3)


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
    many = torch.randn(60, 7, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(many.double(), dim=1)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T / 60).clamp_min(1e-30)
    expected = math.exp(-(eigenvalues * eigenvalues.log()).sum())
    assert vendi_score(many) == pytest.approx(expected)  # from the smaller of the two Gram matrices


def test_kid_by_hand() -> None:
    """Kernel (xy + 1)^3. Pictures 0 and 1, a product each: 1; with the reference (1 + 1 + 27 + 64) / 4."""
    x, reference = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    found = kid(x, np.arange(2), reference)
    assert found.value == pytest.approx(1 + 343 - 2 * 23.25)
    # Drawn twice, a product is no pair with itself: nothing is known of such a sample.
    assert np.isnan(found.replicates).any() and set(found.replicates[~np.isnan(found.replicates)]) == {297.5}


def test_pictures_of_one_product_are_no_pair_in_kid() -> None:
    """Products {0, 1} and {2}: of the three pairs only 0-2 (1) and 1-2 (27) count, not 0-1."""
    x, reference = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0]])
    across = (1 + 1 + 1 + 8 + 1 + 27) / 6
    expected = (1 + 27) / 2 + 1 - 2 * across
    assert kid(x, np.array([0, 0, 1]), reference).value == pytest.approx(expected)
    more = np.concatenate([x, [[np.nan]]])  # a picture that is none
    assert kid(more, np.array([0, 0, 1, 1]), reference).value == pytest.approx(expected)


def test_kid_is_unbiased_and_its_interval_is_its_own() -> None:
    """Of one distribution it is about zero, though a product's pictures are nearly the same."""
    rng, products = np.random.default_rng(0), np.repeat(np.arange(50), 4)
    same = np.repeat(rng.normal(size=(50, 8)), 4, axis=0) + 0.01 * rng.normal(size=(200, 8))
    reference = rng.normal(size=(300, 8))
    low, high = kid(same, products, reference).interval()
    assert low < 0 < high
    assert kid(same, np.arange(200), reference).interval()[0] > 0  # as if all were independent
    assert kid(same + 1, products, reference).interval()[0] > high


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
    assert verdicts_of(outputs).tolist() == [0, 1, NOT_FINITE, NOT_FINITE, NOT_FINITE]
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
    assert succeeded.tolist() == [[False, True, True], [True, True, True], [False, False, False]]
    assert [found.tolist() for found in attempts([[1], [0]])] == [[1, 1], [[True], [False]]]


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
