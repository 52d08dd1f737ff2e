"""Painting, and the rounds of recurrent generation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.diffusion.compositing import paste
from rfft.diffusion.sampling import rollout
from rfft.generation.sample import Outcome, paint, recur, reward_logits
from rfft.models.bundle import Bundle
from rfft.rewards.availability import Availability
from rfft.types import Batch

Make = Callable[..., Bundle]
STEPS, SCALE = 3, 3.0


def test_paint_is_the_whole_rollout_with_the_products_own_pixels(
    bundle: Bundle, make_batch: Callable[..., Batch]
) -> None:
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    images = paint(bundle, batch, schedule, SCALE)
    with torch.no_grad():
        latent = rollout(bundle.denoiser, batch, schedule, SCALE)
        assert torch.equal(images, paste(bundle.decode(latent).clamp(0, 1), batch.product))
    inside = batch.product[:, 3:].expand_as(images) == 1
    assert torch.equal(images[inside], batch.product[:, :3][inside])
    assert not images.requires_grad


@pytest.mark.parametrize("modes", [["denoiser_lora"], ["controlnet"], ["denoiser_lora", "controlnet_lora"]])
def test_the_reference_is_the_untrained_model(
    bundle: Bundle, make_trained: Make, make_batch: Callable[..., Batch], modes: list[str]
) -> None:
    trained = make_trained(*modes)
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    base = paint(bundle, batch, schedule, SCALE)
    assert torch.equal(paint(trained, batch, schedule, SCALE, reference=True), base)
    assert not torch.allclose(paint(trained, batch, schedule, SCALE), base, atol=1e-3)


def test_a_picture_does_not_depend_on_its_batch(bundle: Bundle, make_batch: Callable[..., Batch]) -> None:
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    together = paint(bundle, batch, schedule, SCALE)
    alone = torch.cat([paint(bundle, batch.index([i]), schedule, SCALE) for i in range(2)])
    assert_close(together, alone, rtol=0, atol=1e-5)


Rounds = tuple[dict[int, Outcome], list[list[int]]]


@pytest.fixture
def finished() -> Rounds:
    """What came of four products, and who waited for each attempt."""
    chances = {  # of "available" at each attempt
        0: [0.9],  # accepted at once
        1: [0.1, 0.2, 0.8],  # at the third attempt
        2: [0.1, 0.35, 0.2],  # never: the second picture is the best
        3: [0.42, 0.41, 0.41],  # 0.42 > 0.7 * 0.58: accepted below one half
    }
    rounds: list[list[int]] = []

    def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
        rounds.append(waiting)
        p = torch.tensor([chances[i][attempt] for i in waiting])[:, None]
        return torch.cat([p, (1 - p) * torch.tensor([0.7, 0.1, 0.1, 0.1])], dim=1)

    return recur(attempt_all, 4, max_attempts=3), rounds


def test_recurrent_generation_stops_at_the_first_accepted(finished: Rounds) -> None:
    found, _ = finished
    assert {i: o.attempts for i, o in found.items()} == {0: 1, 1: 3, 2: 3, 3: 1}
    assert {i: o.accepted for i, o in found.items()} == {0: True, 1: True, 2: False, 3: True}


def test_the_picture_kept_is_the_accepted_or_the_best(finished: Rounds) -> None:
    found, _ = finished
    assert {i: o.attempt for i, o in found.items()} == {0: 0, 1: 2, 2: 1, 3: 0}
    assert found[2].probabilities[0] == pytest.approx(0.35)


def test_nothing_is_painted_in_vain(finished: Rounds) -> None:
    _, rounds = finished
    assert rounds == [[0, 1, 2, 3], [1, 2], [1, 2]]


def test_an_accepted_picture_wins_over_a_refused_one_of_higher_probability() -> None:
    refused, accepted = [0.45, 0.55, 0, 0, 0], [0.3, 0.2, 0.2, 0.2, 0.1]
    found = recur(lambda waiting, attempt, best: torch.tensor([[refused, accepted][attempt]]), 1, 5)
    assert (found[0].accepted, found[0].attempt, found[0].attempts) == (True, 1, 2)


def test_a_picture_that_is_not_finite_is_tried_again_and_gives_way() -> None:
    rounds = [[math.nan] * 5, [0.1, 0.9, 0, 0, 0], [math.inf, 0, 0, 0, 0]]
    found = recur(lambda waiting, attempt, best: torch.tensor([rounds[attempt]]), 1, 3)
    assert (found[0].accepted, found[0].attempt, found[0].attempts) == (False, 1, 3)


def test_a_latent_that_overflows_is_no_white_picture(
    bundle: Bundle, make_batch: Callable[..., Batch], reward: Availability
) -> None:
    batch = make_batch(bundle)
    batch.noise[1] = torch.inf
    images = paint(bundle, batch, bundle.schedule(STEPS), SCALE)
    assert images[0].isfinite().all() and images[1].isnan().all()
    logits = reward_logits(lambda x: reward.rfnet(x, batch), images)
    assert logits[0].isfinite().all() and logits[1].isnan().all()


def test_verdicts_are_in_full_precision_whatever_paints(reward: Availability) -> None:
    """Samples and evaluation give one picture one verdict: the bits of float32, in bf16 training too."""
    images, batch = torch.rand(2, 3, 32, 32), cast("Batch", None)
    with torch.autocast("cpu", torch.bfloat16):
        logits = reward_logits(lambda x: reward.rfnet(x, batch), images)
        assert not torch.equal(reward.rfnet(images, batch).float(), logits)
    assert torch.equal(logits, reward.rfnet(images, batch)) and logits.dtype == torch.float32
