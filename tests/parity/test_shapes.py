"""Bases of every shape: stock rollout and prompts, a step in each mode, LoRA loaded back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.diffusion.sampling import rollout
from rfft.errors import UserError
from rfft.generation.export import export_bundle
from rfft.generation.sample import paint
from rfft.models.load import load_bundle, load_skeleton
from rfft.objectives.base import ObjectiveSettings
from rfft.objectives.regularizers import ConsistentCondition
from rfft.objectives.surrogate import Surrogate
from rfft.types import Batch, Reward
from tests import shapes
from tests.stock import stock_picture, with_drawn_latent

MakeBatch = Callable[..., Batch]
MODES = ["denoiser_lora", "controlnet_lora", "controlnet"]
TARGETS = ["to_q", "to_v", "conv1"]


@pytest.fixture(scope="module", params=["sd21", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD 1.5's shape is what all other tests use."""
    path = tmp_path_factory.mktemp(request.param)
    shapes.pipeline(request.param).save_pretrained(path)
    return path


def test_rollout_is_the_pipelines(folder: Path, make_batch: MakeBatch) -> None:
    bundle = load_bundle(folder)
    batch = with_drawn_latent(bundle, make_batch(bundle))
    ours = rollout(bundle.denoiser, batch, bundle.schedule(40), guidance_scale=4.0)
    assert_close(ours, stock_picture(bundle.pipe, batch, 40, 4.0, "latent"), rtol=0, atol=1e-4)


def test_a_rollout_that_is_not_square_is_the_pipelines(folder: Path, make_batch: MakeBatch) -> None:
    bundle = load_bundle(folder)
    batch = with_drawn_latent(bundle, make_batch(bundle, size=(32, 48)))
    assert batch.x_o.shape[-2:] == (32 // bundle.latent_factor, 48 // bundle.latent_factor)
    ours = rollout(bundle.denoiser, batch, bundle.schedule(4, (32, 48)), guidance_scale=4.0)
    assert_close(ours, stock_picture(bundle.pipe, batch, 4, 4.0, "latent"), rtol=0, atol=1e-4)


@pytest.fixture
def published(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Base and ControlNet as on the hub: apart, the base for text to image and with another scheduler."""
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    controlnet = Path(shutil.move(base / "controlnet", tmp_path / "controlnet"))
    rewrite(base / "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler")
    index = json.loads((base / "model_index.json").read_text())
    named = index["_class_name"].replace("ControlNetInpaint", "")
    scheduler = ["diffusers", "EulerDiscreteScheduler"]
    rewrite(base / "model_index.json", _class_name=named, scheduler=scheduler, controlnet=None)
    return base, controlnet


def rewrite(file: Path, **values: Any) -> None:
    """Set these values of a JSON file; None: take them out."""
    changed = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


def test_base_and_controlnet_may_lie_apart(
    folder: Path, published: tuple[Path, Path], make_batch: MakeBatch
) -> None:
    base, controlnet = published
    whole, apart = load_bundle(folder), load_bundle(base, controlnet=controlnet)
    batch = make_batch(whole)
    painted = [rollout(b.denoiser, batch, b.schedule(4), guidance_scale=4.0) for b in (whole, apart)]
    assert torch.equal(*painted)
    assert (
        type(load_skeleton(str(base), controlnet=str(controlnet)).pipe)
        is type(apart.pipe)
        is type(whole.pipe)
    )


def test_what_cannot_be_a_base_is_said(published: tuple[Path, Path]) -> None:
    base, controlnet = published
    for load in (load_bundle, load_skeleton):
        with pytest.raises(UserError, match=r"has no ControlNet: name .* with model\.controlnet"):
            load(str(base))
    rewrite(base / "model_index.json", text_encoder=[None, None])
    for load in (load_bundle, load_skeleton):
        with pytest.raises(UserError, match="has no text_encoder: a refiner"):
            load(str(base), controlnet=str(controlnet))


def test_a_controlnet_of_another_base_is_said(pipeline_folder: Path, tmp_path: Path) -> None:
    shapes.pipeline("sdxl").controlnet.save_pretrained(tmp_path)
    for load in (load_bundle, load_skeleton):
        with pytest.raises(UserError, match="another base .text features 48, .* 16.*model.controlnet"):
            load(str(pipeline_folder), controlnet=str(tmp_path))


def test_sdxls_autoencoder_stays_out_of_half_precision(folder: Path) -> None:
    """It overflows there, and says so in its config; that of SD 1.x and 2.x says so, too, and does not."""
    half, full = load_bundle(folder, torch.float16), load_bundle(folder)
    full.family.vae.half().float()  # the weights themselves are rounded
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = full.decode(latent)
        with torch.autocast("cpu", torch.float16):
            decoded = half.decode(latent)
            encoded = half.encode_image(expected)
    is_xl = type(half.pipe).__name__.startswith("StableDiffusionXL")
    assert torch.equal(decoded, expected) == is_xl
    assert torch.equal(encoded, full.encode_image(expected)) == is_xl
    assert half.pipe.unet.dtype == torch.float16


def test_prompts_are_the_pipelines(folder: Path) -> None:
    bundle = load_bundle(folder)
    said, _ = bundle.encode_prompts(["a park", "soft light"], 32)
    null, _ = bundle.encode_prompts(["", ""], 32)
    theirs = bundle.pipe.encode_prompt(prompt=["a park", "soft light"], device="cpu", num_images_per_prompt=1,
                                       do_classifier_free_guidance=True)  # fmt: skip
    assert_close(said.hidden, theirs[0])
    assert_close(null.hidden, theirs[1])
    if said.added:
        assert_close(said.added["text_embeds"], theirs[2])
        assert_close(null.added["text_embeds"], theirs[3])
        assert said.added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2


@pytest.mark.parametrize("mode", MODES)
def test_a_step_trains_what_it_should(folder: Path, make_batch: MakeBatch, reward: Reward, mode: str) -> None:
    bundle = load_bundle(folder)
    bundle.train([mode], rank=2, alpha=4, target_modules=TARGETS)
    for parameter in bundle.trainable().values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    batch, objective = make_batch(bundle), Surrogate(ObjectiveSettings(3.0, ConsistentCondition(), 0.1))
    output = objective.step(bundle, reward, batch, bundle.schedule(8), [6], Tensor.backward)
    assert output.loss.isfinite() and output.reg > 0
    trained = bundle.trainable()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    every = [p for module in [*bundle.modules, bundle.unwrapped] for p in module.parameters()]
    assert len({id(p) for p in every if p.grad is not None}) == len(trained)


@pytest.mark.parametrize("format", ["diffusers", "kohya", "merged"])
def test_exported_weights_paint_the_trainers_picture(
    folder: Path, tmp_path: Path, make_batch: MakeBatch, format: str
) -> None:
    trained = load_bundle(folder)
    trained.train(["denoiser_lora"], rank=2, alpha=4, target_modules=TARGETS)
    for parameter in trained.trainable().values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    batch = with_drawn_latent(trained, make_batch(trained))
    ours = paint(trained, batch, trained.schedule(4), 4.0)
    assert (ours - paint(trained, batch, trained.schedule(4), 4.0, reference=True)).abs().mean() > 1e-3
    export_bundle(trained, format, tmp_path, "lora")
    kind = type(trained.pipe)
    if format == "merged":
        pipe = kind.from_pretrained(tmp_path)
    else:
        pipe = kind.from_pretrained(folder)
        pipe.load_lora_weights(tmp_path, weight_name=next(tmp_path.glob("*.safetensors")).name)
    alpha = batch.product[:, 3:]
    theirs = alpha * batch.product[:, :3] + (1 - alpha) * stock_picture(pipe, batch, 4, 4.0)
    assert_close(ours, theirs, rtol=0, atol=2e-4)
