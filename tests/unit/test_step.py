"""The training step: what it computes, what it costs, where its gradients go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rfft.diffusion.guidance import guidance_direction
from rfft.diffusion.losses import l_cc, l_kl
from rfft.diffusion.sampling import denoise_twice, rollout
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle
from rfft.models.parameterization import from_epsilon
from rfft.objectives.base import ObjectiveSettings, Work, predict, render
from rfft.objectives.draw import TrainedSteps
from rfft.objectives.surrogate import Surrogate
from rfft.rewards.availability import Availability
from rfft.types import Batch, Reward, StepOutput
from rfft.utils.estimate import Cost
from tests.toys import regularizers

STEPS = 8
MODES = [["denoiser_lora"], ["controlnet_lora"], ["controlnet"], ["denoiser_lora", "controlnet"]]
Make = Callable[..., Bundle]


def settings(
    scale: float = 3.0, regularizer: str = "none", beta: float = 0.0, precision: str = "fp32", **more: object
) -> ObjectiveSettings:
    return ObjectiveSettings(scale, regularizers(regularizer), beta, precision, **more)  # type: ignore[arg-type]


def run(bundle: Bundle, reward: Reward, batch: Batch, ks: list[int], chosen: ObjectiveSettings) -> StepOutput:
    return Surrogate(chosen).step(bundle, reward, batch, bundle.schedule(STEPS), ks, Tensor.backward)


def grads(bundle: Bundle) -> dict[str, Tensor]:
    collected = {n: p.grad.clone() for n, p in bundle.trainable().items() if p.grad is not None}
    bundle.unwrapped.zero_grad()
    return collected


@pytest.mark.parametrize("regularizer", ["cc", "kl", "none"])
@pytest.mark.parametrize("ks", [[6], [0], [4, 5, 7]])
def test_forwards_are_counted(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, regularizer: str, ks: list[int]
) -> None:
    """m without gradient, then one with and one of the reference per trained step, each one batched call."""
    bundle = make_trained("denoiser_lora")
    batch = make_batch(bundle)
    calls: list[str] = []

    def count(module: object, args: tuple[Tensor, ...]) -> None:
        assert len(args[0]) == 2 * len(batch)
        calls.append("gradient" if torch.is_grad_enabled() else "no gradient")

    bundle.unwrapped.register_forward_pre_hook(count)
    output = run(bundle, reward, batch, ks, settings(3.0, regularizer, 0.1))
    references = 0 if regularizer == "none" else len(ks)
    assert calls.count("gradient") == len(ks)
    assert calls.count("no gradient") == (ks[-1] + 1 - len(ks)) + references
    assert output.forwards == len(calls)


@pytest.mark.parametrize("regularizer", ["cc", "none"])
def test_adapters_are_computed_with_gradient_only(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, regularizer: str
) -> None:
    bundle = make_trained("denoiser_lora")
    calls: list[bool] = []
    adapter = next(m for n, m in bundle.unwrapped.named_modules() if n.endswith("lora_A.default"))
    adapter.register_forward_pre_hook(lambda module, args: calls.append(torch.is_grad_enabled()))
    run(bundle, reward, make_batch(bundle), [6], settings(3.0, regularizer, 0.1))
    assert calls == [True]


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_reach_all_that_is_trained_and_nothing_else(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, modes: list[str], autocast: bool
) -> None:
    bundle = make_trained(*modes)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        run(bundle, reward, make_batch(bundle), [5, 7], settings(3.0, "cc", 0.1))
    trained = bundle.trainable()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    if "controlnet" not in modes:
        assert all("lora_" in name for name in trained)
    every = [
        *bundle.unwrapped.parameters(),
        *bundle.family.vae.parameters(),
        *bundle.pipe.text_encoder.parameters(),
    ]
    every += list(bundle.frozen_controlnet.parameters()) if bundle.frozen_controlnet else []
    assert sum(p.grad is not None for p in every) == len(trained)


@pytest.mark.parametrize("modes", MODES[:3])
def test_autocast_gradients_are_those_of_fp32(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, modes: list[str]
) -> None:
    bundle = make_trained(*modes)
    batch = make_batch(bundle)
    objective = settings(3.0, "none")
    run(bundle, reward, batch, [7], objective)
    exact = torch.cat([g.flatten() for g in grads(bundle).values()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(bundle, reward, batch, [7], objective)
    rounded = torch.cat([g.flatten() for g in grads(bundle).values()])
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.95


@pytest.mark.parametrize(("regularizer", "likeness"), [("kl", 0.99), ("cc", 0.6)])
def test_a_controlnet_is_trained_among_frozen_parts_in_half_precision(
    pipeline_folder: Path,
    make_batch: Callable[..., Batch],
    reward: Reward,
    regularizer: str,
    likeness: float,
) -> None:
    """Loss and gradients are those of full precision, to bfloat16's rounding: L_CC's suffer most from it."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        bundle = load_bundle(pipeline_folder, dtype)
        bundle.train(["controlnet"], rank=2, alpha=4, target_modules=[])
        generator = torch.Generator().manual_seed(2)
        for parameter in bundle.trainable().values():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        batch = make_batch(load_bundle(pipeline_folder))
        is_full = dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not is_full):
            output = run(
                bundle, reward, batch, [6], settings(3.0, regularizer, 0.1, "fp32" if is_full else "bf16")
            )
        trained = bundle.trainable()
        assert {p.dtype for p in trained.values()} == {torch.float32}
        frozen = [p for p in bundle.unwrapped.parameters() if not p.requires_grad]
        assert bundle.frozen_controlnet is not None
        frozen += [*bundle.frozen_controlnet.parameters(), *bundle.family.vae.parameters()]
        assert {p.dtype for p in frozen if p.ndim > 1} == {dtype} and all(p.grad is None for p in frozen)
        gradient = grads(bundle)
        assert len(gradient) == len(trained)
        found.append((output, torch.cat([g.flatten() for g in gradient.values()])))
    (full, exact), (half, rounded) = found
    assert_close(half.loss, full.loss, rtol=0.03, atol=0)
    assert torch.cosine_similarity(exact, rounded, dim=0) > likeness


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_what_the_regularizer_compares_stays_out_of_autocast(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, precision: str
) -> None:
    bundle = make_trained("denoiser_lora")
    halves: list[bool] = []
    bundle.unwrapped.register_forward_pre_hook(lambda *_: halves.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(bundle, reward, make_batch(bundle), [2], settings(3.0, "cc", 0.1, precision))
    assert halves == [True, True, precision == "bf16", precision == "bf16"]


def test_autocast_cache_is_cleared_before_each_forward_with_gradient(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older torch drops gradients otherwise; newer does not show it, so look at the order of events."""
    bundle = make_trained("controlnet")
    events: list[str] = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: events.append("clear"))
    bundle.unwrapped.register_forward_pre_hook(
        lambda module, args: events.append("gradient" if torch.is_grad_enabled() else "no gradient")
    )
    run(bundle, reward, make_batch(bundle), [2, 4], settings(3.0, "cc", 0.1))
    before = [events[i - 1] for i, event in enumerate(events) if event == "gradient"]
    assert before == ["clear", "clear"]


@pytest.mark.parametrize("modes", MODES)
@pytest.mark.parametrize("regularizer", ["cc", "kl"])
def test_policy_equal_to_the_reference_has_no_regularizer(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, modes: list[str], regularizer: str
) -> None:
    bundle = make_trained(*modes, shift=0.0)
    output = run(bundle, reward, make_batch(bundle), [6], settings(3.0, regularizer, 1.0))
    assert output.reg == 0
    assert output.loss == output.scalars["f_ac"]
    assert all(g.isfinite().all() for g in grads(bundle).values())


@pytest.mark.parametrize(
    ("regularizer", "modes"),
    [("cc", modes) for modes in MODES]
    + [("kl", ["denoiser_lora"]), ("kl", ["controlnet"]), ("none", ["denoiser_lora"])],
)
def test_step_is_the_sum_of_its_equations(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, regularizer: str, modes: list[str]
) -> None:
    """The same numbers and gradients as eqs (1) to (9) spelt out, without merging or reuse."""
    bundle = make_trained(*modes)
    batch = make_batch(bundle)
    schedule, beta, scale, ks = bundle.schedule(STEPS), 0.5, 3.0, [5, 7]
    output = run(bundle, reward, batch, ks, settings(scale, regularizer, beta))
    got = grads(bundle)

    losses = []
    for k in ks:
        x = rollout(bundle.denoiser, batch, schedule, scale, 0, k)
        theta = predict(bundle.denoiser, x, k, batch, schedule, scale)
        with torch.no_grad(), bundle.reference():
            ref = predict(bundle.denoiser, x, k, batch, schedule, scale)
        reg = {"cc": l_cc(theta.g, ref.g), "kl": l_kl(theta.guided.eps, ref.guided.eps), "none": 0.0}[
            regularizer
        ]
        losses.append(reward(render(bundle, theta.guided.x0, batch), batch)[0].mean() + beta * reg)
    loss = torch.stack(losses).mean()
    loss.backward()

    assert_close(output.loss, loss.detach())
    assert regularizer == "none" or output.reg > 0
    for name, gradient in grads(bundle).items():
        assert_close(got[name], gradient, rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward
) -> None:
    bundle = make_trained("denoiser_lora", "controlnet")
    batch, objective = make_batch(bundle), settings(3.0, "cc", 0.1)
    run(bundle, reward, batch, [6, 7], objective)
    plain = grads(bundle)
    bundle.enable_gradient_checkpointing()
    run(bundle, reward, batch, [6, 7], objective)
    for name, gradient in grads(bundle).items():
        assert_close(gradient, plain[name])


def test_output(make_trained: Make, make_batch: Callable[..., Batch]) -> None:
    bundle = make_trained("denoiser_lora")
    batch = make_batch(bundle)

    class HalfAvailable(nn.Module):
        def forward(self, image: Tensor, batch: Batch) -> Tensor:
            logits = torch.zeros(len(batch), 5)
            logits[0, 0] = logits[1, 1] = 9.0
            return logits + image.mean()

    output = run(bundle, Availability(HalfAvailable()), batch, [6, 7], settings())
    assert output.scalars["available"] == 0.5 and output.scalars["space_mismatch"] == 0.5
    assert output.pictures == 4
    assert set(output.per_k) == {6, 7}
    assert_close(sum(row["reward"] for row in output.per_k.values()) / 2, output.scalars["f_ac"])
    assert output.images.shape == batch.product[:, :3].shape
    opaque = batch.product[:, 3:].bool().expand_as(output.images)
    assert torch.equal(output.images[opaque], batch.product[:, :3][opaque])
    assert not output.loss.requires_grad and not output.images.requires_grad


def test_draw_is_stratified() -> None:
    """Within an optimizer step: one from each half of the pool; over many, each step equally often."""
    draw = TrainedSteps(seed=7, steps=40, last=10, grad_steps=1, strata=2)
    drawn: Counter[int] = Counter()
    for optimizer_step in range(2000):
        (first,), (second,) = draw(optimizer_step, 0), draw(optimizer_step, 1)
        assert 30 <= first < 35 <= second < 40
        drawn.update([first, second])
    assert set(drawn) == set(range(30, 40))
    assert max(drawn.values()) - min(drawn.values()) < 120


@pytest.mark.parametrize("grad_steps", [1, 3, 4, 10])
@pytest.mark.parametrize("accumulation", [1, 3, 16])
def test_draw_is_ascending_distinct_and_reproducible(grad_steps: int, accumulation: int) -> None:
    draw = TrainedSteps(seed=1, steps=40, last=10, grad_steps=grad_steps, strata=accumulation)
    for optimizer_step in range(50):
        for micro_step in range(accumulation):
            ks = draw(optimizer_step, micro_step)
            assert len(set(ks)) == grad_steps
            assert ks == sorted(ks) and ks[0] >= 30 and ks[-1] < 40
            assert ks == draw(optimizer_step, micro_step)
    assert TrainedSteps(2, 40, 10, 1, 1)(0, 0) != TrainedSteps(3, 40, 10, 1, 1)(0, 0)


@pytest.mark.parametrize("autocast", [False, True])
def test_judging_in_parts_changes_no_gradient(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, autocast: bool
) -> None:
    bundle = make_trained("denoiser_lora")
    batch = make_batch(bundle)
    decoded: list[int] = []
    bundle.family.vae.decoder.register_forward_pre_hook(lambda module, args: decoded.append(len(args[0])))
    results = []
    for part in (None, 1):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = run(bundle, reward, batch, [6], settings(3.0, "cc", 0.1, decode_batch=part))
        results.append((output, grads(bundle)))
    assert decoded == [2, 1, 1]
    (whole, all_at_once), (parts, one_by_one) = results
    tolerance = {"rtol": 5e-2, "atol": 5e-3} if autocast else {"rtol": 1e-4, "atol": 1e-6}
    assert_close(parts.loss, whole.loss, **tolerance)
    assert_close(parts.images, whole.images, **tolerance)
    for name, gradient in one_by_one.items():
        assert_close(gradient, all_at_once[name], **tolerance)


@pytest.mark.parametrize(("regularizer", "name"), [("cc", "grad_l_cc"), ("kl", "grad_l_kl")])
def test_gradient_norms_are_those_with_respect_to_the_predicted_noise(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward, regularizer: str, name: str
) -> None:
    """Both terms' gradients by autograd, from the same predictions with eps as a leaf."""
    bundle = make_trained("denoiser_lora")
    batch, k, beta = make_batch(bundle), 6, 0.5
    chosen, schedule = settings(1.0, regularizer, beta), bundle.schedule(STEPS)
    found = run(bundle, reward, batch, [k], chosen).per_k[k]
    with torch.no_grad():
        x = rollout(bundle.denoiser, batch, schedule, 1.0, 0, k)
        z, null = denoise_twice(bundle.denoiser, x, k, batch, schedule)
        with bundle.reference():
            ref = predict(bundle.denoiser, x, k, batch, schedule, 1.0)
    a, s = schedule.a[k], schedule.s[k]
    eps = z.eps.clone().requires_grad_()  # at guidance 1 it is the guided one
    loss = reward(render(bundle, from_epsilon(x, eps, a, s).x0, batch), batch)[0].mean()
    assert_close(found["grad_reward"], torch.autograd.grad(loss, eps)[0].norm())
    reg = (
        l_cc(guidance_direction(eps, null.eps, s), ref.g)
        if regularizer == "cc"
        else l_kl(eps, ref.guided.eps)
    )
    assert_close(found[name], torch.autograd.grad(beta * reg, eps)[0].norm(), rtol=1e-3, atol=1e-6)


def test_without_guidance_and_regularizer_null_is_not_computed(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward
) -> None:
    """ReFL's step: each forward has one branch, and the FLOPs are half of a guided one's."""
    bundle, sizes = make_trained("denoiser_lora"), []
    batch = make_batch(bundle)
    bundle.unwrapped.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    run(bundle, reward, batch, [4], settings(scale=1.0))
    assert sizes == [len(batch)] * 5
    both = settings(scale=1.0, regularizer="cc", beta=0.1)
    run(bundle, reward, batch, [4], both)  # L_CC compares directions: null is needed where it has a say
    assert sizes[5:] == [len(batch)] * 4 + [2 * len(batch)] * 2

    cost = Cost(forward=100, backward=150, activations=0)
    work = Work(rollout=4, trained=1, reference=1, backwards=1, graphs=1)
    assert work.flops(cost, both) == 4 * 50 + 2 * 100 + 150
    assert replace(work, reference=0).flops(cost, settings(scale=1.0)) == 4 * 50 + 50 + 75
    assert work.flops(cost, settings(scale=3.0, regularizer="cc")) == 4 * 100 + 2 * 100 + 150
