"""Hand-worked numbers for the equations, and their limits at alpha_bar 0 and 1."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from rfft.diffusion.sampling import (
    add_noise,
    advance,
    cfg_eps,
    ddim_step,
    guidance_direction,
    guide,
    inpaint,
    latent_mask,
    paste,
    predict_x0,
    rollout,
)
from rfft.types import Batch, Conditioning, Schedule


def toy_batch(noise: float = 2.0, x_o: float = 5.0) -> Batch:
    """One sample of one latent pixel pair: the left one is the product's."""
    empty = torch.zeros(1, 1)
    return Batch(
        z=Conditioning(torch.full((1, 1, 1), 3.0)),
        null=Conditioning(torch.full((1, 1, 1), 1.0)),
        edges=torch.zeros(1, 3, 1, 2),
        product=torch.zeros(1, 4, 1, 2),
        x_o=torch.full((1, 1, 1, 2), x_o),
        mask=tensor([[[[1.0, 0.0]]]]),
        caption_ids=empty,
        caption_mask=empty,
        noise=torch.full((1, 1, 1, 2), noise),
        sample=torch.zeros(1, dtype=torch.long),
    )


def prompt_denoiser(x: Tensor, t: Tensor, cond: Conditioning, edges: Tensor) -> Tensor:
    """Predicts the prompt's own number."""
    return cond.hidden.reshape(-1, 1, 1, 1).expand_as(x)


SCHEDULE = Schedule(tensor([9, 4]), tensor([0.36, 0.64]), tensor([0.64, 1.0]))


def test_predict_x0() -> None:
    # (2 - 0.8 * 1) / 0.6
    assert_close(predict_x0(tensor(2.0), tensor(1.0), tensor(0.36)), tensor(2.0))


def test_ddim_step() -> None:
    # 0.8 * (2 - 0.8) / 0.6 + 0.6 * 1
    assert_close(ddim_step(tensor(2.0), tensor(1.0), tensor(0.36), tensor(0.64)), tensor(2.2))


def test_ddim_step_limits() -> None:
    x, eps, ab = tensor(2.0), tensor(1.0), tensor(0.36)
    assert_close(ddim_step(x, eps, ab, tensor(1.0)), predict_x0(x, eps, ab))  # nothing left but x0_hat
    assert_close(ddim_step(x, eps, ab, tensor(0.0)), eps)  # nothing left but noise
    assert_close(ddim_step(x, eps, ab, ab), x)  # no step
    assert_close(predict_x0(x, eps, tensor(1.0)), x)  # there is no noise in x


def test_add_noise() -> None:
    assert_close(add_noise(tensor(2.0), tensor(1.0), tensor(0.36)), tensor(0.6 * 2 + 0.8))
    assert_close(add_noise(tensor(2.0), tensor(1.0), tensor(1.0)), tensor(2.0))
    assert_close(add_noise(tensor(2.0), tensor(1.0), tensor(0.0)), tensor(1.0))


def test_predict_x0_inverts_add_noise() -> None:
    x0, eps, ab = torch.randn(3, 4), torch.randn(3, 4), tensor(0.3)
    assert_close(predict_x0(add_noise(x0, eps, ab), eps, ab), x0)


def test_inpaint() -> None:
    x, x_o = tensor([1.0, 1.0, 1.0]), tensor([5.0, 5.0, 5.0])
    assert_close(inpaint(x, x_o, tensor([0.0, 1.0, 0.25])), tensor([1.0, 5.0, 2.0]))


def test_guide() -> None:
    eps_z, eps_null = tensor(3.0), tensor(1.0)
    assert guide(eps_z, eps_null, 7.5) == 16.0
    assert guide(eps_z, eps_null, 1.0) == eps_z
    assert guide(eps_z, eps_null, 0.0) == eps_null


def test_guidance_direction() -> None:
    # -(3 - 1) / 0.8; in pure noise -(3 - 1)
    assert_close(guidance_direction(tensor(3.0), tensor(1.0), tensor(0.36)), tensor(-2.5))
    assert_close(guidance_direction(tensor(3.0), tensor(1.0), tensor(0.0)), tensor(-2.0))


def test_cfg_eps_is_one_forward_in_the_precision_of_x() -> None:
    calls = []

    def denoiser(x: Tensor, t: Tensor, cond: Conditioning, edges: Tensor) -> Tensor:
        calls.append((len(x), len(edges)))
        return prompt_denoiser(x, t, cond, edges).bfloat16()

    batch = toy_batch()
    eps_z, eps_null = cfg_eps(denoiser, batch.noise, SCHEDULE.timesteps[0], batch)
    assert calls == [(2, 2)]
    assert eps_z.dtype == torch.float32
    assert eps_z.unique() == 3 and eps_null.unique() == 1


def test_rollout_by_hand() -> None:
    batch = toy_batch()
    # Guided noise: 1 + 2 * (3 - 1) = 5. Background: x0_hat = (2 - 0.8 * 5) / 0.6 = -10/3.
    # Step 0: 0.8 * -10/3 + 0.6 * 5 = 1/3; product: 0.8 * 5 + 0.6 * 2 = 5.2.
    halfway = rollout(prompt_denoiser, batch, SCHEDULE, 2.0, 0, 1)
    assert_close(halfway, tensor([[[[5.2, 1 / 3]]]]))
    # Step 1: (1/3 - 0.6 * 5) / 0.8 = -10/3; the product is clean.
    whole = rollout(prompt_denoiser, batch, SCHEDULE, 2.0)
    assert_close(whole, tensor([[[[5.0, -10 / 3]]]]))
    assert_close(rollout(prompt_denoiser, batch, SCHEDULE, 2.0, 1, 2, halfway), whole)


def test_rollout_of_no_steps_is_its_input() -> None:
    batch = toy_batch()
    assert rollout(prompt_denoiser, batch, SCHEDULE, 2.0, 0, 0) is batch.noise


def test_advance_with_a_gradient_free_forward_is_the_rollouts_step() -> None:
    batch = toy_batch()
    eps = torch.full_like(batch.noise, 5.0)
    step = advance(batch.noise, eps, 0, batch, SCHEDULE)
    assert torch.equal(step, rollout(prompt_denoiser, batch, SCHEDULE, 2.0, 0, 1))


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, 0.2), (1.0, 0.9), (0.5, 0.55)])
def test_paste(alpha: float, expected: float) -> None:
    image = torch.full((1, 3, 1, 1), 0.2)
    product = tensor([0.9, 0.9, 0.9, alpha]).reshape(1, 4, 1, 1)
    assert_close(paste(image, product), torch.full((1, 3, 1, 1), expected))


def test_latent_mask_takes_the_latents_that_show_nothing_but_the_product() -> None:
    product = torch.zeros(1, 4, 4, 4)
    product[:, 3, :2, :3] = 0.6  # all of the first latent, half of its neighbour
    product[:, 3, 2:, 2:] = 0.5
    assert latent_mask(product, (2, 2)).tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]


def test_batch_moves_and_indexes_every_tensor() -> None:
    batch = toy_batch()
    batch.caption_ids = batch.caption_ids.long()
    halved = batch.index([0]).to(dtype=torch.float64)
    assert len(halved) == 1
    assert halved.z.hidden.dtype == halved.noise.dtype == torch.float64
    assert halved.caption_ids.dtype == torch.long


def test_conditioning_cat_keeps_added_embeddings() -> None:
    one = Conditioning(torch.zeros(1, 2, 3), {"time_ids": torch.zeros(1, 6)})
    both = one.cat(Conditioning(torch.ones(2, 2, 3), {"time_ids": torch.ones(2, 6)}))
    assert both.hidden.shape == (3, 2, 3)
    assert both.added["time_ids"].sum() == 12
