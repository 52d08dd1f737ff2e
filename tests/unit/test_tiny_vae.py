"""A small decoder in the training step alone: gradients pass through it, evaluation does not see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.testing import assert_close

from rfft.build import build_bundle
from rfft.config.load import load_config
from rfft.errors import UserError
from rfft.generation.sample import paint
from rfft.models.bundle import Bundle
from rfft.models.load import load_skeleton, load_tiny_vae
from rfft.objectives.base import ObjectiveSettings
from rfft.objectives.surrogate import Surrogate
from rfft.types import Batch, Reward


def tiny(levels: int = 3) -> AutoencoderTiny:
    """Of random weights; 3 levels enlarge 4 times, as the tiny pipeline's VAE does."""
    widths, blocks = (8,) * levels, (1,) * levels
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny_vae")
    tiny().save_pretrained(path)
    return path


def test_gradients_reach_the_lora_through_it_and_evaluation_keeps_the_full_decoder(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], reward: Reward, folder: Path
) -> None:
    bundle = make_trained("denoiser_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(8)
    objective = Surrogate(ObjectiveSettings(3.0))
    before = paint(bundle, batch, schedule, 3.0)
    full = objective.step(bundle, reward, batch, schedule, [6], lambda loss: None)

    bundle.set_tiny_vae(load_tiny_vae(str(folder)))
    calls: list[int] = []
    bundle.family.vae.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    output = objective.step(bundle, reward, batch, schedule, [6], Tensor.backward)
    assert not calls
    grads = {name: parameter.grad for name, parameter in bundle.trainable().items()}
    assert all(grad is not None and grad.any() for grad in grads.values())
    assert all(parameter.grad is None for parameter in bundle.tiny_vae.parameters())
    assert not torch.allclose(output.images, full.images)
    alpha = batch.product[:, 3:]
    assert_close(output.images * (alpha == 1), full.images * (alpha == 1))  # the product's own pixels

    assert_close(paint(bundle, batch, schedule, 3.0), before, rtol=0, atol=0)
    assert len(calls) == 1


def test_its_slope_is_a_slope(bundle: Bundle, folder: Path) -> None:
    bundle.set_tiny_vae(load_tiny_vae(str(folder)))
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pixels = bundle.preview(latent)
    assert pixels.shape == (1, 3, 32, 32)
    assert_close(pixels, bundle.tiny_vae.decode(latent).sample / 2 + 0.5)
    (slope,) = torch.autograd.grad(pixels.mean(), latent)
    step = 1e-2 * slope / slope.norm()
    with torch.no_grad():
        rise = bundle.preview(latent + step).mean() - bundle.preview(latent - step).mean()
    assert rise.item() / 2e-2 == pytest.approx(slope.norm().item(), rel=0.1)


def test_the_config_names_it_for_training_alone(pipeline_folder: Path, folder: Path) -> None:
    config = load_config("tiny", [f"model.bundle={pipeline_folder}", f"model.tiny_vae={folder}"])
    assert build_bundle(config, "cpu").tiny_vae is not None
    assert build_bundle(config, "cpu", trained=False).tiny_vae is None
    imagined = load_skeleton(str(pipeline_folder), tiny_vae=str(folder))
    assert imagined.tiny_vae is not None and imagined.tiny_vae.device.type == "meta"


def test_mistakes(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="enlarges 4 channels 8 times, the bundle's own decoder 4 channels 4"):
        bundle.set_tiny_vae(tiny(levels=4))
    with pytest.raises(UserError, match="model.tiny_vae .*: neither a folder nor a hub id that loads"):
        load_tiny_vae(str(tmp_path))
