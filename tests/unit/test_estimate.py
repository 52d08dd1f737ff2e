"""Costs are counted without computing, and are those of the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rfft.diffusion.sampling import denoise_twice
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle, load_skeleton, skeleton_batch
from rfft.types import Schedule
from rfft.utils.estimate import Cost, FlopCounter, cost, fake, imagine, peak_bytes, weight_bytes
from tests import bases, shapes

TARGETS = ["to_q", "to_v", "conv1"]


def test_a_linear_layer() -> None:
    """2 x 3 times 3 x 5: 60 FLOPs, and as many for each of dx and dW; x [2,3] waits for dW: 24 bytes."""
    layer = nn.Linear(3, 5, bias=False)
    with fake():
        imagine([layer])
        x = torch.zeros(2, 3, requires_grad=True)
        assert cost(lambda: layer(x), layer.parameters()) == Cost(60, 120, 24)
    assert weight_bytes([layer, layer]) == 60


def test_the_peak_of_a_call_without_gradient() -> None:
    """Three layers of 3 x 4 numbers: the first one's result is gone when the third one's is made."""
    layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))

    def peak() -> int:
        x = torch.zeros(3, 4)
        return peak_bytes(lambda: layers(x), layers.parameters())

    expected = peak()
    with fake():
        imagine([layers])
        assert peak() == expected == 2 * 48


def test_flops_are_those_of_torchs_own_counter() -> None:
    """Forward and backward, under autocast, in training and without gradient."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(2), nn.TransformerEncoderLayer(36, 2, 8)
    )
    for half, train in ((False, True), (True, True), (True, False)):
        counted = []
        for counter in (FlopCounter(), FlopCounterMode(display=False)):
            x = torch.rand(2, 3, 8, 8, requires_grad=train)
            attention = sdpa_kernel(SDPBackend.MATH)  # torch does not count the CPU's own
            precision = torch.autocast("cpu", torch.bfloat16, enabled=half)
            with counter, attention, precision, torch.set_grad_enabled(train):
                result = layers(x).sum()
                if train:
                    result.backward()
            counted.append(counter.total if isinstance(counter, FlopCounter) else counter.get_total_flops())
        assert counted[0] == counted[1] > 10_000


SCHEDULE = Schedule(torch.zeros(1, dtype=torch.long), *(torch.ones(1) for _ in range(4)))


def denoiser_cost(bundle: Bundle) -> Cost:
    batch, schedule = skeleton_batch(bundle, 32, 2), SCHEDULE
    return cost(
        lambda: denoise_twice(bundle.denoiser, batch.noise, 0, batch, schedule)[0].x0,
        bundle.unwrapped.parameters(),
    )


@pytest.mark.parametrize(
    "name", ["sd15", "sd21", "sdxl", "sd3", "sd35_large", "kolors", "flux", "qwen_image"]
)
def test_a_skeleton_costs_what_the_bundle_does(name: str, tmp_path: Path) -> None:
    """FLOPs, waiting bytes and weights, counted without weights, are those of real tensors."""
    if name in shapes.SMALL:
        shapes.pipeline(name).save_pretrained(tmp_path)
    else:
        bases.save(name, tmp_path)
    real = load_bundle(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    imagined = load_skeleton(str(tmp_path))
    for bundle in (real, imagined):
        bundle.train(["denoiser_lora"], 2, 4.0, TARGETS)
    expected = denoiser_cost(real)
    with fake():
        imagine([*imagined.modules, imagined.unwrapped])
        assert denoiser_cost(imagined) == expected
    assert weight_bytes(imagined.modules) == weight_bytes(real.modules)


def test_half_of_the_frozen_weights(pipeline_folder: Path) -> None:
    """A trained ControlNet stays in full precision, its frozen copy does not."""

    def weights(bundle: Bundle) -> int:
        bundle.train(["controlnet"], 2, 4.0, TARGETS)
        assert bundle.frozen_controlnet is not None
        return weight_bytes([*bundle.modules, bundle.unwrapped, bundle.frozen_controlnet])

    real, imagined = load_bundle(pipeline_folder, torch.bfloat16), load_skeleton(str(pipeline_folder))
    full, trained = weights(imagined), weight_bytes([imagined.pipe.controlnet])
    half = weights(load_skeleton(str(pipeline_folder), dtype=torch.bfloat16))
    assert half == weights(real)
    assert half - trained == pytest.approx((full - trained) / 2, rel=0.02)  # but for norms
