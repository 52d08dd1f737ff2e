"""Confidence: figures worked out by hand, and pictures moved against their labels."""

import numpy as np
import pytest
import torch

from rfft.metrics.calibration import calibration_error, reliability, temperature
from rfft.training.pretrain.stress import SIZE, STEPS, perturb
from rfft.training.pretrain.verdicts import LabelledBatch, perturbed


def test_the_gap_between_confidence_and_truth_by_hand() -> None:
    """Two bins: 0.9 and 0.9 with one of two right, gap 0.4; 0.6, 0.6 and 0.6 with all right, gap 0.4."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.6, 0.4]])
    labels = [0, 1, 0, 1, 0]
    rows = reliability(probabilities, labels)
    assert [row["count"] for row in rows] == [3, 2]
    assert rows[0] == pytest.approx({"confidence": 0.6, "right": 1.0, "count": 3})
    assert calibration_error(probabilities, labels) == pytest.approx(0.6 * 0.4 + 0.4 * 0.4)


def test_certainty_is_in_the_last_bin() -> None:
    assert reliability([[1.0, 0.0]], [0]) == [{"confidence": 1.0, "right": 1.0, "count": 1}]


def test_a_temperature_undoes_a_factor() -> None:
    """Labels drawn from the softmax of logits; of four times these logits the best temperature is four."""
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=rng)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]
    assert temperature(4 * logits, labels) == pytest.approx(4, rel=0.05)
    assert temperature(logits, labels) == pytest.approx(1, rel=0.05)


def brightness(image: torch.Tensor) -> torch.Tensor:
    """Logits [B,2] of a judge that calls dark pictures 0 and bright ones 1."""
    light = 100 * (image.mean((1, 2, 3)) - 0.5)
    return torch.stack([-light, light], dim=1)


def test_half_of_a_batch_is_moved_against_its_labels_and_no_further_than_asked() -> None:
    torch.manual_seed(0)
    image = torch.full((8, 3, 4, 4), 0.5)
    labels = torch.tensor([0, 1] * 4)
    found = perturbed(image, labels, brightness, 0.01)
    moved = (found - image).mean((1, 2, 3))
    assert (moved[[0, 2]] > 0).all() and (moved[[1, 3]] < 0).all()
    assert (found - image).abs().max() <= 0.01 + 1e-6
    assert torch.equal(found[4:], image[4:]) and not found.requires_grad


def test_the_attack_moves_pictures_towards_available() -> None:
    image = torch.full((2, 3, 4, 4), 0.505)
    empty = torch.zeros(2, 1)
    batch = LabelledBatch(image, empty, empty, empty, torch.tensor([1, 1]), empty, empty, empty)
    assert brightness(image).argmax(-1).tolist() == [1, 1]
    found = perturb(lambda changed: brightness(changed.image), batch)
    assert STEPS * SIZE / 4 > SIZE
    assert (found - image).min() == pytest.approx(-SIZE, rel=1e-4)
    assert brightness(found).argmax(-1).tolist() == [0, 0]
