"""Weights in pickles are not read, even where nothing else is there; one line says what to do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import ResNetConfig, ResNetModel

from rfft.errors import UserError
from rfft.models.load import load_bundle, load_tiny_vae
from rfft.models.pretrained import halved
from rfft.rewards.maps import MapNet, MapNetConfig
from rfft.rewards.preference import TextMatch
from rfft.rewards.rfnet import RFNet, RFNetConfig

BIN = {"diffusion_pytorch_model": "diffusion_pytorch_model.bin", "model": "pytorch_model.bin"}


def pickled(folder: Path, copy: Path, part: str = "") -> Path:
    """A copy of a model's folder whose weights (those of `part`, a folder in it) are in a .bin file."""
    shutil.copytree(folder, copy)
    for file in (copy / part).rglob("*.safetensors"):
        torch.save(load_file(file), file.with_name(BIN[file.stem]))
        file.unlink()
    return copy


def refused(load: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]*\.safetensors[^\n]* convert them to safetensors, see docs"):
        load()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What diffusers logs."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("part", ["unet", "vae", "controlnet", "text_encoder"])
def test_a_bundle(pipeline_folder: Path, tmp_path: Path, part: str, said: pytest.LogCaptureFixture) -> None:
    refused(lambda: load_bundle(pickled(pipeline_folder, tmp_path / "base", part)))
    assert not said.records  # the line is not said twice


def test_controlnet_and_small_decoder(pipeline_folder: Path, tmp_path: Path) -> None:
    controlnet = pickled(pipeline_folder / "controlnet", tmp_path / "controlnet")
    refused(lambda: load_bundle(pipeline_folder, controlnet=controlnet))
    decoder = pickled(pipeline_folder / "vae", tmp_path / "vae")  # what it holds is not looked at
    refused(lambda: load_tiny_vae(str(decoder)))


def test_clip(clip: Path, tmp_path: Path) -> None:
    refused(lambda: TextMatch(str(pickled(clip, tmp_path / "clip"))))


def test_encoders(tmp_path: Path) -> None:
    shape = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    ResNetModel(ResNetConfig(**shape)).save_pretrained(tmp_path / "resnet")
    source = pickled(tmp_path / "resnet", tmp_path / "pickled")
    rfnet = RFNet(RFNetConfig.tiny(vocab_size=10, image_encoder=shape))
    rfnet.load_encoders(image=str(tmp_path / "resnet"))
    refused(lambda: rfnet.load_encoders(image=str(source)))


def test_half_precision_keeps_running_statistics_and_refuses_what_is_no_number(tmp_path: Path) -> None:
    """A variance above 65504, float16's largest number, would come back infinite."""
    network = MapNet(MapNetConfig(widths=[4, 8]))
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    norm.running_var.fill_(142432.0)
    halved(network).save_pretrained(tmp_path)
    again = MapNet.from_pretrained(tmp_path).state_dict()
    for name, value in network.state_dict().items():
        wanted = value.half().float() if name in dict(network.named_parameters()) else value
        assert torch.equal(again[name], wanted), name

    with torch.no_grad():
        next(network.parameters()).fill_(70000.0)
    with pytest.raises(UserError, match=r"not written, as down.0.0.weight is not finite"):
        halved(network).save_pretrained(tmp_path)
