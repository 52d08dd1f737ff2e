"""FLUX.1 Fill, which is shown the product by its transformer: diffusers' own pipeline, gradients, exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rfft.config.load import config_from
from rfft.diffusion.sampling import advance, rollout
from rfft.errors import UserError
from rfft.generation.export import export_bundle
from rfft.generation.model_card import usage
from rfft.models.bundle import Bundle
from rfft.models.families.flux_fill import FluxFill
from rfft.models.load import load_bundle, load_skeleton
from rfft.objectives.base import predict
from rfft.types import Batch, Reward
from tests import bases, published
from tests.parity.test_families import adapt_as, moved, train_a_step
from tests.stock_bases import stock_latent

NAME, SCALE = "flux_fill", 1.0  # its guidance is distilled
MakeBatch = Callable[..., Batch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(NAME)
    bases.save(NAME, made)
    return made


@pytest.fixture(autouse=True)
def as_rfft_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents are the posterior's mean; fewer tokens than FLUX reads, which takes less time."""
    posterior = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
    monkeypatch.setattr(f"{posterior}.sample", lambda self, generator=None: self.mode())
    monkeypatch.setattr("rfft.models.families.flux.TOKENS", 48)


def stock(pipe: Any, batch: Batch, steps: int, after: Any = None) -> Tensor:
    return stock_latent(pipe, batch, batch.edges, steps, SCALE, after)


def painted(bundle: Bundle, batch: Batch) -> Tensor:
    return rollout(bundle.denoiser, batch, bundle.schedule(8, 32), SCALE)


def test_rollout_is_the_pipelines(folder: Path, make_batch: MakeBatch) -> None:
    """With latent inpainting, and as the pipeline paints: then its own input alone tells of the product."""
    bundle = load_bundle(folder)
    assert isinstance(bundle.family, FluxFill)
    batch = make_batch(bundle)
    told = replace(batch, mask=torch.zeros_like(batch.mask))
    for case in (batch, told):
        assert_close(painted(bundle, case), stock(bases.pipeline(NAME), case, 8), rtol=0, atol=1e-4)
    other = bundle.encode_control(batch.edges, batch.product.flip(-1))
    assert not torch.allclose(painted(bundle, told), painted(bundle, replace(told, edges=other)), atol=1e-3)


def test_the_gradient_is_that_of_a_loop_with_diffusers_scheduler(folder: Path, make_batch: MakeBatch) -> None:
    """What of step 2 of 4 a LoRA would change, in the pipeline's own loop."""
    bundle = moved(folder, "denoiser_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(4, 32)
    wanted = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(5))
    x = rollout(bundle.denoiser, batch, schedule, SCALE, stop=2)
    theta = predict(bundle.denoiser, x, 2, batch, schedule, SCALE)
    (advance(theta.guided, 2, batch, schedule) * wanted).sum().backward()

    pipe = bases.pipeline(NAME)
    adapted = adapt_as(pipe.transformer, bundle.pipe.transformer)
    reached: list[Tensor] = []

    def after(i: int, latents: Tensor) -> Tensor:
        reached.append(latents)
        return latents.detach()

    stock(pipe, batch, 4, after)
    (reached[2] * wanted).sum().backward()
    ours = {key.partition(".")[2]: p.grad for key, p in bundle.trainable().items()}
    assert adapted.keys() == ours.keys()
    for key, parameter in adapted.items():
        assert_close(ours[key], parameter.grad)


@pytest.mark.slow
def test_a_step_trains_the_lora_and_nothing_else(folder: Path, make_batch: MakeBatch, reward: Reward) -> None:
    bundle = moved(folder, "denoiser_lora")
    bundle.enable_gradient_checkpointing()
    output = train_a_step(bundle, make_batch(bundle), reward)
    assert output.loss.isfinite() and output.reg > 0
    trained = bundle.trainable()
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    every = [p for module in [*bundle.modules, bundle.unwrapped] for p in module.parameters()]
    assert len({id(p) for p in every if p.grad is not None}) == len(trained)


@pytest.mark.parametrize(
    "format", ["diffusers", *(pytest.param(name, marks=pytest.mark.slow) for name in ("peft", "merged"))]
)
def test_exported_weights_paint_the_trainers_picture(
    folder: Path, tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """As the model card's own lines load them."""
    trained = moved(folder, "denoiser_lora")
    export_bundle(trained, format, tmp_path, "lora")
    batch = make_batch(trained)
    config = config_from({"run": {"name": "lora"}, "model": {"bundle": str(folder)}})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(usage(format, asdict(config), trained)), names)
    assert_close(painted(trained, batch), stock(names["pipe"], batch, 8), rtol=0, atol=2e-4)
    with trained.reference():
        assert (painted(trained, batch) - stock(names["pipe"], batch, 8)).abs().max() > 0.01


def test_it_has_no_controlnet(folder: Path) -> None:
    with pytest.raises(UserError, match="takes no ControlNet: leave out model.controlnet"):
        load_bundle(folder, controlnet="any/controlnet")
    with pytest.raises(UserError, match="model.train controlnet: this base has no controlnet"):
        load_bundle(folder).train(["controlnet"], 2, 4, ["to_q"])


@pytest.mark.slow
def test_parameters_are_counted_from_published_files(tmp_path: Path) -> None:
    """FLUX.1-dev's files, with the 384 channels that Fill's transformer takes."""
    published.write("flux", tmp_path)
    for file, values in {
        "transformer/config.json": {"in_channels": 384, "out_channels": 64},
        "model_index.json": {"_class_name": "FluxFillPipeline"},
    }.items():
        known = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(known | values))
    bundle = load_skeleton(str(tmp_path), torch.bfloat16)
    counted = [sum(p.numel() for p in network.parameters()) for network in bundle.modules]
    assert counted == [11_901_408_320 + 320 * 3072, 83_819_683, 123_060_480, 4_762_310_656]
