"""Metrics of a grid, by hand."""

from __future__ import annotations

import pytest
import torch

from rfft.evaluation import summary
from rfft.metrics.wilson import wilson_interval

CLASSES = {"surface": ["wood", "sand"], "prop": ["none", "cactus", "vase"]}


def test_verdicts() -> None:
    metrics = summary.verdict_metrics({"rfnet": torch.tensor([[0, 1], [0, 4]]), "judge": torch.zeros(2, 2)})
    low, high = wilson_interval(2, 4)
    assert metrics["available_rate"]["rfnet"] == {"rate": 0.5, "low": low, "high": high}
    assert metrics["available_rate"]["judge"]["rate"] == 1
    failures = {name: share["rate"] for name, share in metrics["failures"]["rfnet"].items()}
    assert failures == {
        "space_mismatch": 0.25,
        "size_mismatch": 0,
        "indistinctiveness": 0,
        "shape_hallucination": 0.25,
    }


def test_attempts() -> None:
    accepted = torch.tensor([[True, False, False], [False, False, True], [False, False, False]])
    metrics = summary.attempt_metrics(accepted)
    assert metrics["attempts"] == pytest.approx(7 / 3)
    assert metrics["attempts_interval"] == [1, 3]
    assert metrics["success_at"] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert metrics["success_at_interval"] == [list(wilson_interval(n, 3)) for n in (1, 1, 2)]


def test_a_prop_counts_only_where_one_is_asked_for() -> None:
    asked = [{"surface": "wood", "prop": "none"}, {"surface": "sand", "prop": "vase"}]
    read = {"surface": torch.tensor([[0, 0], [1, 0]]), "prop": torch.tensor([[0, 0], [2, 1]])}
    metrics = summary.alignment_metrics(read, asked, CLASSES)
    assert {name: share["rate"] for name, share in metrics["alignment_by"].items()} == {
        "surface": 0.75,
        "prop": 0.5,  # not 0.75: the first product has none, as asked
    }
    assert metrics["alignment"] == 0.625
    # Either prompt alone: 1 by its surface, which has no prop; or (0.5 + 0.5) / 2.
    assert metrics["alignment_interval"] == [0.5, 1]
    without = summary.alignment_metrics({"prop": read["prop"]}, [asked[0], asked[0]], CLASSES)
    assert without == {}


def test_diversity_needs_two_seeds() -> None:
    features = torch.eye(4).reshape(2, 2, 4)
    metrics = summary.diversity_metrics(features)
    assert (metrics["diversity"], metrics["vendi"]) == pytest.approx((1, 4))
    assert "diversity" not in summary.diversity_metrics(features[:, :1])


def test_figures_of_one_prompt_have_no_interval() -> None:
    features, reference = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0)), torch.rand(5, 4)
    for metrics in (summary.diversity_metrics, lambda x: summary.kid_metrics(x, reference)):
        both, name = metrics(features), "vendi" if metrics is summary.diversity_metrics else "kid"
        low, high = both[f"{name}_interval"]
        assert low < both[name] < high
    assert "vendi_interval" not in summary.diversity_metrics(features[:1])
    assert "kid_interval" not in summary.kid_metrics(features[:1].repeat(1, 2, 1), reference)


def test_colour_is_averaged_over_the_seeds_first() -> None:
    metrics = summary.mean_metrics("colourfulness", torch.tensor([[10.0, 20.0], [15.0, 15.0]]))
    assert metrics["colourfulness"] == 15
    assert metrics["colourfulness_interval"] == [15, 15]


def test_pictures_without_a_value_do_not_count() -> None:
    metrics = summary.mean_metrics(
        "product_psnr", torch.tensor([[10.0, torch.nan], [20.0, 20.0], [torch.nan] * 2])
    )
    assert metrics["product_psnr"] == 15 and metrics["product_psnr_interval"] == [10, 20]
