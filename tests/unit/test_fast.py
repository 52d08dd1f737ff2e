"""The rollout's copy of the denoiser: it follows the trained weights, and its numbers are the network's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.config.load import config_from
from rfft.diffusion.sampling import rollout
from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.models.fast import FastCopy
from rfft.objectives.base import ObjectiveSettings, roll_out
from rfft.objectives.surrogate import Surrogate
from rfft.training.speed import compiles
from rfft.types import Batch, Reward

Make = Callable[..., Bundle]
STEPS = 8


def painted(bundle: Bundle, batch: Batch, stop: int = STEPS) -> Tensor:
    settings = ObjectiveSettings(3.0)
    return roll_out(bundle, batch, bundle.schedule(STEPS), settings, 0, stop, batch.noise)


def move(bundle: Bundle, seed: int = 1) -> None:
    """Change what is trained, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in bundle.trainable().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("mode", ["denoiser_lora", "controlnet_lora", "controlnet"])
def test_in_full_precision_the_copy_paints_what_the_network_does(
    make_trained: Make, make_batch: Callable[..., Batch], mode: str
) -> None:
    """The merged weights are the same, also after a step, and the trained networks keep every bit."""
    bundle = make_trained(mode)
    batch, before = make_batch(bundle), {n: p.clone() for n, p in bundle.unwrapped.named_parameters()}
    base = painted(bundle, batch)
    bundle.fast = FastCopy(bundle.unwrapped, torch.float32)
    assert_close(painted(bundle, batch), base, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in bundle.unwrapped.named_parameters())

    move(bundle)
    copied, bundle.fast = painted(bundle, batch), None
    changed = painted(bundle, batch)
    assert (changed - base).norm() > 0.01 * base.norm()
    assert_close(copied, changed, rtol=1e-4, atol=1e-4)


def test_half_precision_moves_x_little_and_the_gradient_is_the_networks(
    make_trained: Make, make_batch: Callable[..., Batch], reward: Reward
) -> None:
    """At the trained step everything is computed anew: at the same x, the gradient is the same."""
    bundle = make_trained("denoiser_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    exact = painted(bundle, batch, stop=6)
    bundle.fast = FastCopy(bundle.unwrapped, torch.bfloat16)
    x = painted(bundle, batch, stop=6)
    assert x.dtype == torch.float32
    assert 0 < (x - exact).norm() < 0.03 * exact.norm()

    def gradients() -> list[Tensor]:
        Surrogate(ObjectiveSettings(3.0)).step(bundle, reward, batch, schedule, [0], Tensor.backward)
        found = [p.grad.clone() for p in bundle.trainable().values() if p.grad is not None]
        bundle.unwrapped.zero_grad()
        return found

    with_copy = gradients()  # no rollout leads to step 0
    bundle.fast = None
    assert all(torch.equal(a, b) for a, b in zip(with_copy, gradients(), strict=True))


def test_cached_forwards_leave_out_controlnet_and_deep_blocks(
    make_trained: Make, make_batch: Callable[..., Batch]
) -> None:
    """Of three in a row one is whole; where nothing lies between, the shallow forward is the whole one."""
    bundle = make_trained("denoiser_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(STEPS)
    fast = FastCopy(bundle.unwrapped, torch.float32, cache=3)
    calls = {"controlnet": 0, "mid": 0, "last": 0}

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda *_: calls.update({name: calls[name] + 1}))

    count("controlnet", fast.denoiser.controlnet)
    count("mid", fast.denoiser.unet.mid_block)
    count("last", fast.denoiser.unet.up_blocks[-1])
    fast.begin()
    x = rollout(fast, batch, schedule, 3.0, stop=7)
    assert calls == {"controlnet": 3, "mid": 3, "last": 7}
    exact = rollout(bundle.denoiser, batch, schedule, 3.0, stop=7)
    assert 0 < (x - exact).norm() < 0.2 * exact.norm()

    fast.begin()  # the same x at the same step again: what was kept is what would be computed
    whole = fast(batch.noise, schedule.level(3), batch.z, batch.edges)
    again = fast(batch.noise, schedule.level(3), batch.z, batch.edges)
    assert_close(again.eps, whole.eps, rtol=1e-5, atol=1e-5)


def test_settings_that_cannot_work_are_refused(make_trained: Make) -> None:
    with pytest.raises(UserError, match=r"rollout\.precision=bf16"):
        config_from({"rollout.cache": 3})
    with pytest.raises(UserError, match=r"rollout\.cache reuses what U-Nets say"):
        FastCopy(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.bfloat16, cache=2)


def test_a_long_run_is_compiled_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    device, blocks = torch.device("cpu"), ["ResnetBlock2D"]

    def compiled(**settings: object) -> bool:
        return compiles(config_from({f"rollout.{n}": v for n, v in settings.items()} | plan), blocks, device)

    monkeypatch.setattr("shutil.which", lambda name: name)
    plan: dict[str, object] = {"trainer.accumulation": 1, "trainer.steps": 80}  # times 30 to 39 forwards
    assert not compiled(precision="bf16")
    plan["trainer.steps"] = 120
    assert compiled(precision="bf16")
    assert not compiled() and not compiled(precision="bf16", compile="never")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiled(precision="bf16")
    with pytest.raises(UserError, match="finds no compiler"):
        compiled(precision="bf16", compile="always")


@pytest.mark.slow
@pytest.mark.parametrize("cache", [1, 2])
def test_compiled_networks_say_the_same(
    make_trained: Make, make_batch: Callable[..., Batch], cache: int
) -> None:
    """No graph breaks in them, and a step of training needs no new compilation."""
    bundle = make_trained("denoiser_lora")
    batch = make_batch(bundle)
    plain, fast = (FastCopy(bundle.unwrapped, torch.float32, cache) for _ in range(2))
    fast.compile(bundle.family.units)

    def both() -> list[Tensor]:
        found = []
        for copy in (plain, fast):
            bundle.fast = copy
            found.append(painted(bundle, batch, stop=2))
        return found

    assert_close(*both(), rtol=1e-3, atol=1e-3)
    move(bundle)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(*both(), rtol=1e-3, atol=1e-3)
