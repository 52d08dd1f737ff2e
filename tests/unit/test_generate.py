"""Painting, and the queue of recurrent generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.diffusion import paste, rollout
from rfft.generate import Painted, paint, recur
from rfft.models.bundle import Bundle
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


@pytest.mark.parametrize("modes", [["unet_lora"], ["controlnet"], ["unet_lora", "controlnet_lora"]])
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


def scripted(chances: dict[int, list[float]], calls: list[list[int]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Paints pictures of value attempt / 10 with the given probabilities of "available"."""

    def draw(chosen: list[int], attempts: list[int]) -> tuple[Tensor, Tensor]:
        calls.append(chosen)
        p = torch.tensor([chances[i][attempt] for i, attempt in zip(chosen, attempts, strict=True)])
        rest = (1 - p)[:, None] * torch.tensor([0.7, 0.1, 0.1, 0.1])
        images = torch.tensor(attempts)[:, None, None, None] / 10 * torch.ones(1, 3, 2, 2)
        return images, torch.cat([p[:, None], rest], dim=1)

    return draw


@pytest.fixture
def finished() -> Iterator[tuple[dict[int, Painted], list[list[int]]]]:
    chances = {
        0: [0.9],  # accepted at once
        1: [0.1, 0.2, 0.8],  # at the third attempt
        2: [0.1, 0.35, 0.2],  # never: the second picture is the best
        3: [0.42, 0.41, 0.41],  # 0.42 > 0.7 * 0.58: accepted below one half
    }
    calls: list[list[int]] = []
    yield dict(recur(scripted(chances, calls), 4, max_attempts=3, batch_size=2)), calls


def test_recurrent_generation_stops_at_the_first_accepted(
    finished: tuple[dict[int, Painted], list[list[int]]],
) -> None:
    found, _ = finished
    assert {i: p.attempts for i, p in found.items()} == {0: 1, 1: 3, 2: 3, 3: 1}
    assert {i: p.accepted for i, p in found.items()} == {0: True, 1: True, 2: False, 3: True}


def test_the_picture_kept_is_the_accepted_or_the_best(
    finished: tuple[dict[int, Painted], list[list[int]]],
) -> None:
    found, _ = finished
    assert {i: p.attempt for i, p in found.items()} == {0: 0, 1: 2, 2: 1, 3: 0}
    assert all(torch.all(p.image == torch.tensor(p.attempt) / 10) for p in found.values())
    assert found[2].probabilities[0] == pytest.approx(0.35)


def test_batches_are_filled_and_nothing_is_painted_in_vain(
    finished: tuple[dict[int, Painted], list[list[int]]],
) -> None:
    _, calls = finished
    assert calls == [[0, 1], [1, 2], [1, 2], [2, 3]]


def test_an_accepted_picture_wins_over_a_refused_one_of_higher_probability() -> None:
    def draw(chosen: list[int], attempts: list[int]) -> tuple[Tensor, Tensor]:
        refused, accepted = [0.45, 0.55, 0, 0, 0], [0.3, 0.2, 0.2, 0.2, 0.1]
        p = [refused, accepted][attempts[0]]
        return torch.zeros(1, 3, 2, 2), torch.tensor([p])

    [(_, painted)] = recur(draw, 1, 5, 8)
    assert (painted.accepted, painted.attempt, painted.attempts) == (True, 1, 2)
