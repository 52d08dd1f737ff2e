"""Hand-worked numbers for the equations, and their limits without and in pure noise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from rfft.diffusion.compositing import latent_mask, paste
from rfft.diffusion.guidance import guidance_direction, guide
from rfft.diffusion.sampling import add_noise, advance, denoise_twice, inpaint, rollout
from rfft.models.parameterization import from_epsilon, from_v, from_velocity
from rfft.types import Batch, Conditioning, Denoised, NoiseLevel, Schedule


def toy_batch(noise: float = 2.0, x_o: float = 5.0) -> Batch:
    """One sample of one latent pixel pair: the left one is the product's."""
    return Batch(
        z=Conditioning(torch.full((1, 1, 1), 3.0)),
        null=Conditioning(torch.full((1, 1, 1), 1.0)),
        edges=torch.zeros(1, 3, 1, 2),
        product=torch.zeros(1, 4, 1, 2),
        x_o=torch.full((1, 1, 1, 2), x_o),
        mask=tensor([[[[1.0, 0.0]]]]),
        noise=torch.full((1, 1, 1, 2), noise),
        sample=torch.zeros(1, dtype=torch.long),
        captions=["a vase"],
        prompts=["a vase in a park"],
    )


def prompt_denoiser(x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
    """Predicts the prompt's own number as noise."""
    return from_epsilon(x, cond.hidden.reshape(-1, 1, 1, 1).expand_as(x), level.a, level.s)


# alpha_bar 0.36, 0.64, then no noise: a = 0.6, 0.8, 1 and s = 0.8, 0.6, 0.
SCHEDULE = Schedule(*(tensor(values) for values in ([9, 4], [0.6, 0.8], [0.8, 0.6], [0.8, 1.0], [0.6, 0.0])))


def test_the_pair_of_each_parameterization() -> None:
    """x = a x0 + s eps holds for all three, whatever the network says."""
    x, a, s = tensor(2.0), tensor(0.6), tensor(0.8)
    assert from_epsilon(x, tensor(1.0), a, s) == (2.0, 1.0)  # (2 - 0.8) / 0.6
    x0, eps = from_v(x, tensor(1.0), a, s)  # 0.6 * 2 - 0.8; 0.8 * 2 + 0.6
    assert_close(x0, tensor(0.4)), assert_close(eps, tensor(2.2))
    assert_close(a * x0 + s * eps, x)
    sigma = tensor(0.25)
    x0, eps = from_velocity(x, tensor(1.0), sigma)  # 2 - 0.25; 2 + 0.75
    assert (x0, eps) == (1.75, 2.75) and (1 - sigma) * x0 + sigma * eps == x
    assert from_velocity(x, tensor(1.0), tensor(1.0)) == (1.0, 2.0)  # in pure noise, where a = 0


def test_ddim_step() -> None:
    # 0.8 * (2 - 0.8) / 0.6 + 0.6 * 1
    pair = from_epsilon(tensor(2.0), tensor(1.0), tensor(0.6), tensor(0.8))
    assert_close(add_noise(*pair, tensor(0.8), tensor(0.6)), tensor(2.2))
    assert_close(add_noise(*pair, tensor(1.0), tensor(0.0)), pair.x0)  # nothing left but x0_hat
    assert_close(add_noise(*pair, tensor(0.0), tensor(1.0)), pair.eps)  # nothing left but noise
    assert_close(add_noise(*pair, tensor(0.6), tensor(0.8)), tensor(2.0))  # no step


def test_inpaint() -> None:
    x, x_o = tensor([1.0, 1.0, 1.0]), tensor([5.0, 5.0, 5.0])
    assert_close(inpaint(x, x_o, tensor([0.0, 1.0, 0.25])), tensor([1.0, 5.0, 2.0]))


def test_guide() -> None:
    x, level = tensor(2.0), NoiseLevel(tensor(9), tensor(0.6), tensor(0.8))
    z, null = (from_epsilon(x, tensor(eps), level.a, level.s) for eps in (3.0, 1.0))  # x0_hat: -2/3 and 2
    for scale, x0, eps in ((7.5, -18.0, 16.0), (1.0, -2 / 3, 3.0), (0.0, 2.0, 1.0)):  # (2 - 0.8 eps) / 0.6
        guided = guide(z, null, scale, x, level)
        assert_close(guided.x0, tensor(x0))
        assert guided.eps == eps


def test_guidance_in_a_flows_pure_noise() -> None:
    """Where a = 0, x says nothing of x0_hat: it is guided itself, and no gradient is NaN."""
    x, level = tensor(2.0), NoiseLevel(tensor(1000), tensor(0.0), tensor(1.0))
    u = tensor(3.0, requires_grad=True)
    guided = guide(from_velocity(x, u, level.s), from_velocity(x, tensor(1.0), level.s), 4.0, x, level)
    assert guided.x0 == 1 + 4 * (-1 - 1) and guided.eps == 2
    assert torch.autograd.grad(guided.x0, u)[0] == -4


def test_guidance_direction() -> None:
    # -(3 - 1) / 0.8; in pure noise -(3 - 1)
    assert_close(guidance_direction(tensor(3.0), tensor(1.0), tensor(0.8)), tensor(-2.5))
    assert_close(guidance_direction(tensor(3.0), tensor(1.0), tensor(1.0)), tensor(-2.0))


def test_the_guidance_direction_of_a_flow() -> None:
    """By its velocities it is -((1 - sigma) / sigma) (u_z - u_null)."""
    x, sigma, u_z, u_null = tensor(2.0), tensor(0.25), tensor(3.0), tensor(1.0)
    eps_z, eps_null = (from_velocity(x, u, sigma).eps for u in (u_z, u_null))
    assert_close(guidance_direction(eps_z, eps_null, sigma), -(0.75 / 0.25) * (u_z - u_null))


def test_prompt_and_null_are_one_forward() -> None:
    calls = []

    def denoiser(x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        calls.append((len(x), len(edges), level))
        return prompt_denoiser(x, level, cond, edges)

    batch = toy_batch()
    z, null = denoise_twice(denoiser, batch.noise, 0, batch, SCHEDULE)
    assert calls == [(2, 2, NoiseLevel(tensor(9), tensor(0.6), tensor(0.8)))]
    assert z.eps.unique() == 3 and null.eps.unique() == 1
    assert_close(z.x0, (batch.noise - 0.8 * 3) / 0.6)


def test_without_guidance_null_is_not_asked() -> None:
    calls = []

    def denoiser(x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        calls.append(len(x))
        return prompt_denoiser(x, level, cond, edges)

    batch = toy_batch()
    guided = advance(denoise_twice(prompt_denoiser, batch.noise, 0, batch, SCHEDULE)[0], 0, batch, SCHEDULE)
    assert_close(rollout(denoiser, batch, SCHEDULE, 1.0, 0, 1), guided)
    assert calls == [len(batch)]


def test_a_velocitys_norm_is_kept_by_hand() -> None:
    """The prompt's is (3, 4, 0, 0) in its only token, that for null (0, 0, 0, 0): at scale 2 (6, 8, 0, 0)."""
    level = NoiseLevel(tensor(500.0), tensor(0.5), tensor(0.5), keeps_norm=True)
    x, u = tensor([[[[1.0, 1.0], [1.0, 1.0]]]]), tensor([[[[3.0, 4.0], [0.0, 0.0]]]])
    pairs = [Denoised(x - 0.5 * velocity, x + 0.5 * velocity) for velocity in (u, 0 * u)]
    for keeps, factor in ((True, 1), (False, 2)):
        guided = guide(*pairs, 2.0, x, level._replace(keeps_norm=keeps))
        assert_close(guided.eps - guided.x0, factor * u)
        assert_close(guided.x0, x - 0.5 * factor * u)


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
    z, null = denoise_twice(prompt_denoiser, batch.noise, 0, batch, SCHEDULE)
    step = advance(guide(z, null, 2.0, batch.noise, SCHEDULE.level(0)), 0, batch, SCHEDULE)
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
    halved = batch.index([0]).to(dtype=torch.float64)
    assert len(halved) == 1
    assert halved.z.hidden.dtype == halved.noise.dtype == torch.float64
    assert halved.sample.dtype == torch.long
    for i in ([0], slice(0, 1), tensor([0])):
        assert batch.index(i).prompts == ["a vase in a park"]
    assert batch.index([]).captions == []


def test_conditioning_cat_keeps_added_embeddings() -> None:
    one = Conditioning(torch.zeros(1, 2, 3), {"time_ids": torch.zeros(1, 6)})
    both = one.cat(Conditioning(torch.ones(2, 2, 3), {"time_ids": torch.ones(2, 6)}))
    assert both.hidden.shape == (3, 2, 3)
    assert both.added["time_ids"].sum() == 12
