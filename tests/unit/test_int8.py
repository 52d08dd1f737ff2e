"""Frozen weights in int8: hand-worked numbers, forward and backward, what is rounded and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torch.testing import assert_close

from rfft.config.load import config_from
from rfft.errors import UserError
from rfft.generation.export import merged_copy
from rfft.models.bundle import Bundle
from rfft.models.int8 import Int8Linear, rounded
from rfft.models.load import load_bundle, load_skeleton
from rfft.training.costs import costs
from rfft.types import Batch, Reward
from rfft.utils.estimate import weight_bytes
from tests import bases
from tests.parity.test_families import train_a_step

MODE, ATTENTION = ["denoiser_lora"], ["to_q", "to_v", "to_out.0", "add_q_proj"]


def test_a_rows_largest_weight_is_half_a_step_above_127() -> None:
    values, scale = rounded(torch.tensor([[1.275, -0.505, 0.014], [0.0, 0.0, 0.0]]))
    assert scale.flatten().tolist() == pytest.approx([0.01, 1e-5 / 127.5])
    assert values.tolist() == [[127, -50, 1], [0, 0, 0]] and values.dtype == torch.int8


@pytest.mark.parametrize("half", [False, True])
def test_it_computes_with_the_rounded_weight(half: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 24).requires_grad_(False)
    quantized, plain = Int8Linear(layer), nn.Linear(48, 24)
    assert (quantized.dense(torch.float32) - layer.weight).abs().max() <= quantized.scale.max() / 2
    plain.load_state_dict({"weight": quantized.dense(torch.float32), "bias": layer.bias})
    found = []
    for network in (quantized, plain):
        x = torch.linspace(-1, 1, 96).view(2, 48).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = network(x)
        y.float().square().sum().backward()
        found.append((y.detach(), x.grad))
    assert found[0][0].dtype == (torch.bfloat16 if half else torch.float32)
    assert_close(*found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sd3")
    bases.save("sd3", made)
    return made


def quantized(folder: Path, modes: list[str] = MODE, dtype: torch.dtype = torch.float32) -> Bundle:
    bundle = load_bundle(folder, dtype)
    bundle.quantize("int8", modes, ATTENTION)
    bundle.train(modes, 2, 4, ATTENTION)
    return bundle


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
def test_a_step_trains_beside_rounded_weights(
    folder: Path, make_batch: Callable[..., Batch], reward: Reward, dtype: torch.dtype
) -> None:
    bundle = quantized(folder, dtype=dtype)
    for parameter in bundle.trainable().values():
        parameter.data += 0.05
    bundle.enable_gradient_checkpointing()
    output = train_a_step(bundle, make_batch(bundle).to(dtype=torch.float32), reward)
    assert output.loss.isfinite() and output.reg > 0
    assert all(p.grad is not None and p.grad.any() for p in bundle.trainable().values())
    names = {name for name, layer in bundle.unwrapped.named_modules() if isinstance(layer, Int8Linear)}
    assert "transformer.transformer_blocks.1.ff.net.2" in names  # in a block, and no adapter's
    assert "controlnet.transformer_blocks.1.attn.to_q" in names  # no mode trains it
    assert not any(name.endswith(tuple(ATTENTION)) for name in names if name.startswith("transformer."))
    assert not any("proj_out" in name or "embed" in name for name in names)


def test_what_is_merged_computes_as_the_rounded_one(folder: Path, make_batch: Callable[..., Batch]) -> None:
    bundle = quantized(folder, ["denoiser_lora", "controlnet"])
    assert not any(isinstance(layer, Int8Linear) for layer in bundle.unwrapped.controlnet.modules())
    for parameter in bundle.trainable().values():
        parameter.data += 0.01
    merged = merged_copy(bundle, "transformer")
    assert isinstance(merged, SD3Transformer2DModel)
    batch = make_batch(bundle)
    said = batch.noise, batch.z.hidden, batch.z.added["pooled"], torch.tensor([500.0, 500.0])
    with torch.no_grad():
        ours, theirs = (network(*said)[0] for network in (bundle.pipe.transformer, merged))
        plain = load_bundle(folder).pipe.transformer(*said)[0]
    assert_close(ours, theirs)
    assert (ours - plain).abs().max() > 1e-4


def test_it_is_counted_without_weights(folder: Path) -> None:
    plain, less = load_skeleton(str(folder)), load_skeleton(str(folder))
    less.quantize("int8", MODE, ATTENTION)
    layers = [layer for layer in less.unwrapped.modules() if isinstance(layer, Int8Linear)]
    saved = sum(3 * layer.rounded.numel() - 4 * layer.scale.numel() for layer in layers)
    assert weight_bytes([plain.unwrapped]) - weight_bytes([less.unwrapped]) == saved > 0


@pytest.mark.slow
def test_rfft_check_counts_it(folder: Path) -> None:
    few = {"model.bundle": str(folder), "evaluate.enabled": False, "data.image_size": 64}
    plain, less = (costs(config_from(few | {"model.quantize": kind})) for kind in ("none", "int8"))
    assert less.lasting["weights"] < plain.lasting["weights"] and less.together < plain.together


def test_what_it_is_not_for(folder: Path) -> None:
    with pytest.raises(UserError, match=r"set rollout.precision=autocast"):
        config_from({"model.quantize": "int8", "rollout.precision": "bf16"})
    bundle = load_bundle(folder)
    bundle.family.units = ()  # type: ignore[misc]
    with pytest.raises(UserError, match="names no blocks"):
        bundle.quantize("int8", MODE, ATTENTION)
