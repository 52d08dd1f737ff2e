"""Each preset on a linear denoiser, against the gradient written out by hand.

The denoiser is eps_hat = w x for prompt and null; the decoder is the identity but for its scale, and the
reward's loss is c . latent, so that dloss/dw = c . dx_S/dw. Along the sampler

    x_(k+1) = A_k x_k + W_k eps_k      A_k = a_next / a,  W_k = s_next - a_next s / a      (1)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rfft.config.load import config_from
from rfft.diffusion.noise import more_noise
from rfft.diffusion.sampling import carry, coefficients, rollout
from rfft.errors import UserError
from rfft.models.parameterization import from_epsilon, from_velocity
from rfft.objectives.base import ObjectiveSettings
from rfft.objectives.draw import TrainedSteps
from rfft.objectives.surrogate import Surrogate
from rfft.training.method import trained_steps
from rfft.types import Batch, Conditioning, Denoise, Denoised, NoiseLevel, Schedule, StepOutput
from tests.toys import regularizers

STEPS, W0 = 5, 0.3
SIZE = (2, 1, 1, 3)


class Linear(nn.Module):
    """A policy that is its own denoiser: eps_hat (or a flow's velocity) is w x; the reference's w is 0.1."""

    def __init__(self, flow: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(W0, dtype=torch.float64))
        self.to_pair, self.active, self.flow = (from_velocity if flow else from_epsilon), True, flow

    def denoiser(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        said = (self.w if self.active else 0.1) * x
        return from_velocity(x, said, level.s) if self.flow else from_epsilon(x, said, level.a, level.s)

    @contextmanager
    def merged(self) -> Iterator[None]:
        yield

    @contextmanager
    def rolling(self) -> Iterator[Denoise]:
        yield self.denoiser

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.active = False
        yield
        self.active = True

    def decode(self, latent: Tensor) -> Tensor:
        return latent.expand(-1, 3, -1, -1) / 1000 + 0.5  # well within what is clamped

    preview = decode


def schedule(flow: bool = False) -> Schedule:
    if flow:
        s = torch.linspace(0.9, 0, STEPS + 1, dtype=torch.float64)
        a = 1 - s
    else:
        s = torch.tensor([0.95, 0.8, 0.6, 0.4, 0.2, 0.05], dtype=torch.float64)
        a = (1 - s**2).sqrt()
    return Schedule(1000 * s[:-1], a[:-1], s[:-1], a[1:], s[1:])


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SIZE, generator=generator, dtype=torch.float64)
    blank = Conditioning(torch.zeros(2, 1, 1))
    mask = torch.zeros(2, 1, 1, 3, dtype=torch.float64)
    mask[:, :, :, 2] = 1  # the last element is the product's
    product = torch.zeros(2, 4, 1, 3, dtype=torch.float64)
    x_o = torch.full(SIZE, 0.7, dtype=torch.float64)
    return Batch(
        blank, blank, torch.zeros(2, 3, 1, 3), product, x_o, mask, noise, torch.arange(2), [""] * 2, [""] * 2
    )


C = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]], dtype=torch.float64).reshape(SIZE)


def reward(image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """c . latent of each picture, undone from the decoder's scale."""
    latent = (image[:, :1] - 0.5) * 1000
    return (C * latent).sum((1, 2, 3)), {}


def run(objective: Surrogate, batch: Batch, ks: list[int], flow: bool = False) -> tuple[StepOutput, Tensor]:
    policy = Linear(flow)
    output = objective.step(policy, reward, batch, schedule(flow), ks, Tensor.backward)
    assert policy.w.grad is not None
    return output, policy.w.grad


def designed(name: str, **changes: object) -> Surrogate:
    """The objective that a config has under this name, without regularizer and guidance."""
    options = config_from(
        {"objective.use": name, "rollout.steps": STEPS, "rollout.last": STEPS}
    ).objective.options
    return Surrogate(ObjectiveSettings(1.0), **{**options, **changes})  # type: ignore[arg-type]


def states(batch: Batch, plan: Schedule) -> list[Tensor]:
    """x_0 .. x_S of the sampler, by (1) and (2)."""
    policy = Linear()
    with torch.no_grad():
        return [rollout(policy.denoiser, batch, plan, 1.0, 0, k) for k in range(STEPS + 1)]


def factors(plan: Schedule) -> tuple[Tensor, Tensor]:
    return plan.a_next / plan.a, plan.s_next - plan.a_next * plan.s / plan.a


def verdict(batch: Batch, slope: Tensor) -> Tensor:
    """dloss/dw where dx_S/dw is `slope`: of what is outside the product, the mean over the two pictures."""
    return (C * (1 - batch.mask) * slope).sum() / 2


@pytest.mark.parametrize("name", ["rfft", "refl"])
def test_what_is_foreseen(batch: Batch, name: str) -> None:
    """x0_hat = (x - s w x) / a at data x: its slope is - s x / a; the mean over the active steps."""
    plan, ks = schedule(), [2, 4]
    x = states(batch, plan)
    _, found = run(designed(name), batch, ks)
    slopes = [-plan.s[k] / plan.a[k] * x[k] for k in ks]
    assert_close(found, sum(verdict(batch, slope) for slope in slopes) / 2)


@pytest.mark.parametrize("last", [1, 3])
def test_draft_k(batch: Batch, last: int) -> None:
    """The whole chain: dx_(k+1)/dw = (A + W w) dx_k/dw + W x_k."""
    plan = schedule()
    x, (a, w) = states(batch, plan), factors(plan)
    _, found = run(designed("draft-k"), batch, list(range(STEPS - last, STEPS)))
    slope = torch.zeros(SIZE, dtype=torch.float64)
    for k in range(STEPS - last, STEPS):
        slope = (1 - batch.mask) * ((a[k] + w[k] * W0) * slope + w[k] * x[k])
    assert_close(found, verdict(batch, slope))


def test_draft_lv(batch: Batch) -> None:
    """The last step alone, from its own x and from two noised copies of the finished latent."""
    plan, k = schedule(), STEPS - 1
    x, (_, w) = states(batch, plan), factors(plan)
    output, found = run(designed("draft-lv"), batch, [k])
    seen = [x[k], *(plan.a[k] * x[-1] + plan.s[k] * more_noise(batch.noise, i) for i in (0, 1))]
    assert_close(found, sum(verdict(batch, w[k] * each) for each in seen) / 3)
    assert output.pictures == 6 and output.forwards == STEPS + 2


def own_way(batch: Batch, plan: Schedule, ks: list[int]) -> Tensor:
    """dx_S/dw where no denoiser's input has a gradient: each W_k x_k, carried on by A_(k+1) .. A_(S-1)."""
    x, (a, w) = states(batch, plan), factors(plan)
    return sum((a[k + 1 :].prod() * w[k] * x[k] for k in ks), torch.zeros(SIZE, dtype=torch.float64))


def test_drtune(batch: Batch) -> None:
    ks = [1, 3]
    _, found = run(designed("drtune"), batch, ks)
    assert_close(found, verdict(batch, own_way(batch, schedule(), ks)))


def test_flowbp_sparse(batch: Batch) -> None:
    """As DRTune, times g = 1 + 0.5 (all steps' coefficients / the active ones' - 1)."""
    plan, ks = schedule(), [0, 2, 3]
    _, found = run(designed("flowbp-sparse"), batch, ks)
    a, w = factors(plan)
    sizes = torch.stack([(a[k + 1 :].prod() * w[k]).abs() for k in range(STEPS)])
    assert_close(coefficients(plan), sizes)
    g = 1 + 0.5 * (sizes.sum() / sizes[ks].sum() - 1)
    assert_close(found, g * verdict(batch, own_way(batch, plan, ks)))


def test_flowbp_bridge(batch: Batch) -> None:
    """As DRTune, and at the middle one, j = 2, half of what comes by x_j enters the denoiser."""
    plan, ks, j = schedule(), [0, 2, 3], 2
    _, found = run(designed("flowbp-bridge"), batch, ks)
    x, (a, w) = states(batch, plan), factors(plan)
    before = a[1] * w[0] * x[0]  # dx_2/dw
    bridge = a[j + 1 :].prod() * w[j] * 0.5 * W0 * before
    assert_close(found, verdict(batch, own_way(batch, plan, ks) + bridge))


def test_leapalign(batch: Batch) -> None:
    """x_j = a_j x0_hat(x_k) + s_j eps_k and x_S likewise; 0.3 of dx_j/dw goes through the denoiser at j."""
    plan, (k, j), tau = schedule(), (1, 3), 0.01
    output, found = run(designed("leapalign", leap=tau), batch, [k, j])
    x, free = states(batch, plan), 1 - batch.mask
    leaps, slope, missed = [], torch.zeros(SIZE, dtype=torch.float64), torch.zeros(2, 1, 1, 1)
    for start, stop, alpha in ((k, j, 0.3), (j, STEPS, 0.3)):
        a, s = (plan.a[stop], plan.s[stop]) if stop < STEPS else (plan.a_next[-1], plan.s_next[-1])
        coefficient = s - a * plan.s[start] / plan.a[start]
        leaps.append(a / plan.a[start] * x[start] + coefficient * W0 * x[start])
        slope = a / plan.a[start] * slope + coefficient * (x[start] + alpha * W0 * slope)
        gap = (free * (leaps[-1] - x[stop])).abs().mean((1, 2, 3), keepdim=True)
        missed = missed + gap.clamp(min=tau)
    assert_close(found, verdict(batch, slope / missed))
    assert (missed > 2 * tau).all()  # or the test would say nothing about what is missed
    assert_close(output.images[:, :1], 0.5 + x[-1] / 1000, atol=0, rtol=0)


NAMES = ("draft-k", "draft-lv", "drtune", "flowbp-sparse", "flowbp-bridge", "leapalign")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flow", [False, True])
def test_the_picture_is_the_samplers_to_the_bit(batch: Batch, name: str, flow: bool) -> None:
    ks, policy = [1, 3, 4] if name != "draft-lv" else [4], Linear(flow)
    objective = designed(name, noised=0)
    output, _ = run(objective, batch, ks, flow)
    finished = rollout(policy.denoiser, batch, schedule(flow), 1.0)
    assert torch.equal(output.images, policy.decode(finished))


def test_a_flow_carries_on_by_eulers_step(batch: Batch) -> None:
    """The velocity is held, as FlowBP does: each step's slope is (s_next - s) x_k, and nothing shrinks it."""
    plan, ks = schedule(flow=True), [1, 3]
    policy = Linear(flow=True)
    x = [rollout(policy.denoiser, batch, plan, 1.0, 0, k) for k in range(STEPS)]
    _, found = run(designed("drtune"), batch, ks, flow=True)
    assert_close(found, verdict(batch, sum((plan.s_next[k] - plan.s[k]) * x[k] for k in ks)))
    assert_close(coefficients(plan), plan.s - plan.s_next)
    assert carry(plan, 1, STEPS) == 1


def test_the_regularizer_of_a_chain_is_that_of_its_own_step(batch: Batch) -> None:
    """With alpha 0 its slope at step k is that of L_KL = 1/2 mean (w x - 0.1 x)^2, whose x is data."""
    plan, ks, beta = schedule(), [1, 3], 0.5
    x = states(batch, plan)
    plain = run(designed("drtune"), batch, ks)[1]
    weights = [0.0, 2.0, 0.0, 1.0, 0.0]
    held = Surrogate(ObjectiveSettings(1.0, regularizers("kl"), beta, step_weights=weights), sees="finished")
    output, found = run(held, batch, ks)
    slopes = [weights[k] * (W0 - 0.1) * x[k].square().mean() for k in ks]
    assert_close(found - plain, beta * sum(slopes) / 2)
    assert_close(output.reg, sum(weights[k] * 0.5 * ((W0 - 0.1) * x[k]).square().mean() for k in ks) / 2)


def test_random_draws_follow_their_weights() -> None:
    """Two of four, with weights 1, 2, 3, 4: the last is first with 0.4, and missing seldom."""
    draw = TrainedSteps(seed=1, steps=10, last=4, grad_steps=2, strata=1, draw="random", bias=1.0)
    drawn = [draw(step, 0) for step in range(4000)]
    assert all(len(set(ks)) == 2 and ks == sorted(ks) and ks[0] >= 6 for ks in drawn)
    assert drawn[0] == draw(0, 0) and len({tuple(draw(0, stratum)) for stratum in range(20)}) > 1
    weights = {6: 1, 7: 2, 8: 3, 9: 4}
    for one, weight in weights.items():
        others = sum(v / 10 * weight / (10 - v) for k, v in weights.items() if k != one)
        share = sum(one in ks for ks in drawn) / len(drawn)
        assert share == pytest.approx(weight / 10 + others, abs=0.03)


def test_presets_are_settings_that_a_config_may_change() -> None:
    config = config_from({"objective.use": "flowbp-sparse", "rollout.steps": 20})
    assert trained_steps(config, 1) == TrainedSteps(0, 20, 20, 4, 1, "random", 1.0)
    assert config.objective.options == {"sees": "finished", "rescale": 0.5}
    changed = config_from(
        {"objective.use": "flowbp-sparse", "objective.options": {"rescale": 0.0}}, ["rollout.grad_steps=2"]
    )
    assert changed.objective.options == {"sees": "finished", "rescale": 0.0}
    assert (changed.rollout.grad_steps, changed.rollout.last) == (2, 40)
    # On the command line a name stands for its settings over those of the file, and clears another's options.
    file = {"objective": {"use": "leapalign", "regularizer": "kl", "options": {"alpha": 0.2}}}
    named = config_from(file, ["objective.use=refl"]).objective
    assert (named.regularizer, named.guidance_scale, named.options) == ("none", 1.0, {})
    assert config_from(file).objective.options == {"sees": "finished", "alpha": 0.2, "leap": 0.1}
    assert config_from({"objective.use": "x0_hat"}) == config_from({})
    assert config_from({"objective.use": "draft"}) == config_from({"objective.use": "draft-k"})
    assert (
        replace(config_from({"objective.use": "refl"}).objective, use="rfft", regularizer="cc").guidance_scale
        == 1
    )


def test_designs_that_make_no_sense() -> None:
    for options, told in (
        ({"sees": "both"}, "x0_hat or finished"),
        ({"alpha": 1.5, "sees": "finished"}, "alpha=1.5: it is from 0 to 1"),
        ({"alpha": 0.5}, "need objective.options.sees=finished"),
        ({"noised": -1}, "it is a count"),
    ):
        with pytest.raises(UserError, match=told):
            Surrogate(ObjectiveSettings(1.0), **options)  # type: ignore[arg-type]


def test_pairs_of_neighbours() -> None:
    """The toy schedules hang together: what one step reaches, the next begins with."""
    for flow in (False, True):
        plan = schedule(flow)
        assert all(plan.a_next[i] == plan.a[j] for i, j in pairwise(range(STEPS)))
