"""Merged against unmerged, reference against base, and adapters saved against adapters loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionControlNetInpaintPipeline
from torch import Tensor
from torch.testing import assert_close

from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle
from rfft.models.lora import merged_bytes
from rfft.types import Batch, NoiseLevel
from tests.shapes import bundle_of

MODES = [["denoiser_lora"], ["controlnet_lora"], ["controlnet"], ["denoiser_lora", "controlnet_lora"]]
MODES += [["denoiser_lora", "controlnet"]]
Make = Callable[..., Bundle]
LEVEL = NoiseLevel(torch.tensor(501), torch.tensor(0.6), torch.tensor(0.8))


@torch.no_grad()
def forward(bundle: Bundle, batch: Batch) -> Tensor:
    return bundle.denoiser(batch.noise, LEVEL, batch.z, batch.edges).eps


def weights(bundle: Bundle) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in bundle.unwrapped.state_dict().items()}


@pytest.mark.parametrize("modes", MODES)
def test_merged_is_unmerged(make_trained: Make, make_batch: Callable[..., Batch], modes: list[str]) -> None:
    bundle = make_trained(*modes)
    batch = make_batch(bundle)
    before, unmerged = weights(bundle), forward(bundle, batch)
    known = {parameter.data_ptr() for parameter in bundle.unwrapped.parameters()}
    with bundle.merged():
        assert_close(forward(bundle, batch), unmerged, rtol=1e-4, atol=1e-5)
        own = [p.nbytes for p in bundle.unwrapped.parameters() if p.data_ptr() not in known]
        assert sum(own) == merged_bytes(bundle.unwrapped)
    after = weights(bundle)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(forward(bundle, batch), unmerged)


@pytest.mark.parametrize("modes", MODES)
def test_reference_is_the_base_bit_for_bit(
    bundle: Bundle, make_trained: Make, make_batch: Callable[..., Batch], modes: list[str]
) -> None:
    trained = make_trained(*modes)
    batch = make_batch(bundle)
    base = forward(bundle, batch)
    assert not torch.allclose(forward(trained, batch), base, atol=1e-3)
    with trained.reference():
        assert torch.equal(forward(trained, batch), base)
    assert not torch.allclose(forward(trained, batch), base, atol=1e-3)


def test_merging_survives_an_error_inside(make_trained: Make, make_batch: Callable[..., Batch]) -> None:
    bundle = make_trained("denoiser_lora", "controlnet")
    batch = make_batch(bundle)
    before = forward(bundle, batch)
    with pytest.raises(RuntimeError), bundle.merged(), bundle.reference():
        raise RuntimeError
    assert torch.equal(forward(bundle, batch), before)


def test_merging_keeps_dtype_and_memory_format(make_trained: Make) -> None:
    bundle = make_trained("denoiser_lora")
    bundle.unwrapped.to(memory_format=torch.channels_last)
    conv = bundle.pipe.unet.down_blocks[0].resnets[0].conv1
    conv.base_layer.to(torch.bfloat16)
    with bundle.merged():
        assert conv.base_layer.weight.dtype == torch.bfloat16
        assert conv.base_layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_merging_is_exact_under_autocast(make_trained: Make) -> None:
    bundle = make_trained("denoiser_lora")
    with bundle.merged():
        exact = weights(bundle)
    with torch.autocast("cpu", dtype=torch.bfloat16), bundle.merged():
        assert all(torch.equal(tensor, exact[name]) for name, tensor in weights(bundle).items())


def test_a_new_adapter_is_fp32_and_changes_nothing(
    pipeline_folder: Path, bundle: Bundle, make_trained: Make, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(bundle)
    assert torch.equal(forward(make_trained("denoiser_lora", shift=0.0), batch), forward(bundle, batch))
    half = load_bundle(pipeline_folder, torch.bfloat16)
    half.train(["denoiser_lora", "controlnet"], 2, 2, ["to_q"])
    assert {p.dtype for p in half.trainable().values()} == {torch.float32}


@pytest.mark.parametrize("modes", MODES)
def test_state_dict_round_trip(
    make_trained: Make, make_batch: Callable[..., Batch], modes: list[str]
) -> None:
    trained, fresh = make_trained(*modes), make_trained(*modes, shift=0.0)
    batch = make_batch(fresh)
    state = trained.adapter_state_dict()
    assert len(state) == len(trained.trainable())
    fresh.load_adapter_state_dict(state)
    assert torch.equal(forward(fresh, batch), forward(trained, batch))


def test_state_dict_of_another_shape_is_refused(make_trained: Make) -> None:
    with pytest.raises(UserError, match="do not fit"):
        make_trained("controlnet").load_adapter_state_dict(make_trained("denoiser_lora").adapter_state_dict())


def test_diffusers_loads_the_state_dict(
    pipeline_folder: Path, tmp_path: Path, make_trained: Make, make_batch: Callable[..., Batch]
) -> None:
    """The U-Net's part is a diffusers LoRA as it is; rank and alpha go along as metadata."""
    trained = make_trained("denoiser_lora")
    batch = make_batch(trained)
    layers = {name.removeprefix("unet."): tensor for name, tensor in trained.adapter_state_dict().items()}
    metadata = trained.pipe.unet.peft_config["default"].to_dict()
    trained.pipe.save_lora_weights(tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata)
    pipe = StableDiffusionControlNetInpaintPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    pipe.load_lora_weights(tmp_path)
    assert_close(forward(bundle_of(pipe), batch), forward(trained, batch))


@pytest.mark.parametrize(
    ("modes", "message"),
    [
        (["lora"], "give one or more"),
        ([], "give one or more"),
        (["controlnet", "controlnet_lora"], "leave out"),
    ],
)
def test_bad_modes(bundle: Bundle, modes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bundle.train(modes, 2, 2, ["to_q"])


def test_bad_target_modules(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="target_modules.*nowhere"):
        bundle.train(["denoiser_lora"], 2, 2, ["nowhere"])


def test_bad_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no model_index.json"):
        load_bundle(tmp_path)
    for nameless in ("{}", "[]"):
        (tmp_path / "model_index.json").write_text(nameless)
        with pytest.raises(UserError, match="bundle .* cannot be loaded .*names no pipeline"):
            load_bundle(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    for name in (tmp_path, tmp_path / "missing", "nobody/nothing"):
        with pytest.raises(UserError, match="bundle") as error:
            load_bundle(name)
        assert "\n" not in str(error.value)
