"""Frozen weights in half precision, used in full: the same numbers and gradients, for half the memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from rfft.models.bundle import Bundle
from rfft.models.half import HalfConv2d, HalfLinear, use_in_full
from rfft.models.load import load_bundle
from rfft.objectives.base import ObjectiveSettings
from rfft.objectives.regularizers import ConsistentCondition
from rfft.objectives.surrogate import Surrogate
from rfft.types import Batch, Reward
from rfft.utils.estimate import cost, weight_bytes
from tests import bases

MODES = [["denoiser_lora"], ["controlnet_lora"], ["controlnet"]]


def test_layers_by_torchs_own() -> None:
    """Outputs and gradients are those of layers whose weights are what half precision left of them."""
    layers = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.GroupNorm(2, 6), nn.Flatten(1), nn.Linear(24, 5)
    )
    half = nn.Sequential(*layers).requires_grad_(False).to(torch.bfloat16)
    full = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.GroupNorm(2, 6), nn.Flatten(1), nn.Linear(24, 5)
    )
    full.load_state_dict(half.state_dict())
    use_in_full(half)
    assert [type(layer) for layer in half] == [HalfConv2d, nn.GroupNorm, nn.Flatten, HalfLinear]
    assert half[0].weight.dtype == half[3].weight.dtype == torch.bfloat16
    found = []
    for network in (full.requires_grad_(False), half):
        x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = network(x)
        y.square().sum().backward()
        found.append((y, x.grad))
    assert_close(*found)


@pytest.fixture(scope="module", params=["sd15", "kolors", "flux"])
def folder(
    request: pytest.FixtureRequest, pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "sd15":
        return pipeline_folder
    path = tmp_path_factory.mktemp(request.param)
    bases.save(request.param, path)
    return path


def trained(folder: Path, modes: list[str], dtype: torch.dtype) -> Bundle:
    bundle = load_bundle(folder, dtype)
    if dtype == torch.float32:  # the same weights
        for part in (bundle.unwrapped, bundle.family.vae):
            part.bfloat16().float()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        bundle.train(modes, 2, 4, ["to_q", "to_v", "conv1", "proj_out"])
        for parameter in bundle.trainable().values():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return bundle


@pytest.mark.parametrize("modes", MODES)
def test_a_step_is_that_of_full_weights(
    folder: Path,
    make_batch: Callable[..., Batch],
    reward: Reward,
    monkeypatch: pytest.MonkeyPatch,
    modes: list[str],
) -> None:
    """Loss, L_CC and gradients; the rollout's merged weights, which are rounded, left out."""
    monkeypatch.setattr(Bundle, "merged", lambda self: nullcontext())
    batch, found = make_batch(load_bundle(folder)), []
    weights: dict[str, Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16):
        bundle = trained(folder, modes, dtype)
        bundle.family.vae.float()
        if weights:  # peft rounds new ones to the precision of what they adapt
            bundle.load_adapter_state_dict(weights)
        weights = bundle.adapter_state_dict()
        objective = Surrogate(ObjectiveSettings(3.0, ConsistentCondition(), 0.1))
        output = objective.step(bundle, reward, batch, bundle.schedule(4, 32), [2], Tensor.backward)
        gradient = torch.cat([p.grad.flatten() for p in bundle.trainable().values()])
        found.append((output.loss, output.reg, gradient))
    (loss, reg, full), (half_loss, half_reg, half) = found
    assert_close((half_loss, half_reg), (loss, reg), rtol=1e-4, atol=1e-6)
    assert (half - full).norm() < 1e-3 * full.norm()  # bfloat16's activations are 0.4 off


def test_activations_are_those_of_full_weights(folder: Path, make_batch: Callable[..., Batch]) -> None:
    """No copy of a weight waits for the backward pass."""
    batch, found, weights = make_batch(load_bundle(folder)), [], []
    for dtype in (torch.float32, torch.bfloat16):
        bundle = trained(folder, ["denoiser_lora"], dtype)
        level = bundle.schedule(4, 32).level(2)

        def call(bundle: Bundle = bundle, level: object = level) -> Tensor:
            return bundle.denoiser(batch.noise, level, batch.z, batch.edges).x0  # type: ignore[arg-type]

        found.append(cost(call, bundle.unwrapped.parameters()).activations)
        weights.append(weight_bytes([bundle.unwrapped]))
    assert found[1] <= found[0]
    assert weights[1] < 0.8 * weights[0]
