"""Reading the config of `rfft rfnet train`, and the combinations of its settings that cannot work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rfft.adworld.styles import SOURCES
from rfft.config.load import find_config, load_as
from rfft.config.read import groups
from rfft.config.schema import Config
from rfft.errors import require
from rfft.rewards.rfnet_config import CAPTION, CHANNELS
from rfft.rfnet.schema import ADWORLD, RFNetDataConfig, RFNetNetworkConfig, RFNetTrainingConfig

MODALITIES = (*CHANNELS, CAPTION)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RFNetTrainingConfig:
    """Read, complete and check the config of a training of RFNet, as config.load.load_config does RFFT's."""
    foreign = {group.name for group in fields(Config)} - {group.name for group in fields(RFNetTrainingConfig)}
    require(
        foreign.isdisjoint(groups(find_config(path))),
        f"{path}: a config of a generator's training; run: rfft train {path}",
    )
    return load_as(RFNetTrainingConfig, check_config, path, overrides)


def check_config(config: RFNetTrainingConfig) -> None:
    """Combinations that cannot work; each error names the fix."""
    require(
        config.data.train,
        "data.train is empty: name folders in RF1M's form, or votes, as in data.train=[votes:feedback.db]",
    )
    unknown = sorted(set(config.rfnet.drop) - set(MODALITIES))
    require(not unknown, f"rfnet.drop names {', '.join(unknown)}: choose from {', '.join(MODALITIES)}")
    require(
        set(CHANNELS) - set(config.rfnet.drop),
        "rfnet.drop leaves no picture to judge: keep one of o, g, d, s",
    )
    _check_encoders(config.rfnet)
    _check_scenes(config)


def _check_encoders(network: RFNetNetworkConfig) -> None:
    image, text = network.image_encoder, network.text_encoder
    require(
        network.width % network.heads == 0,
        f"rfnet.width={network.width} is no multiple of rfnet.heads={network.heads}",
    )
    require(
        len(image.hidden_sizes) == len(image.depths) > 0,
        "rfnet.image_encoder: hidden_sizes and depths must be lists of one length, a number for each stage",
    )
    require(
        text.hidden_size % text.heads == 0,
        f"rfnet.text_encoder.hidden_size={text.hidden_size} is no multiple of its heads={text.heads}",
    )
    require(
        text.weights or text.tokenizer or network.init,
        "rfnet.text_encoder has neither weights nor tokenizer: name one, for example "
        "rfnet.text_encoder.tokenizer=rf-tiny-rfnet",
    )


def _check_scenes(config: RFNetTrainingConfig) -> None:
    data, scenes, total = config.data, config.data.scenes, sum(config.data.scenes.shares)
    if not uses_scenes(data):
        require(
            config.objective.attributes == 0,
            "objective.attributes needs AdWorld's scenes, whose attributes are known: set it to 0",
        )
        require(
            config.objective.regions == 0,
            "objective.regions needs AdWorld's scenes, whose regions are known: set it to 0",
        )
        return
    named = [*data.train, *data.validation]
    require(
        len(data.train) == len(data.validation) == 1 and all(name.startswith(ADWORLD) for name in named),
        "data.train and data.validation must name one source of AdWorld's scenes each: "
        "data.validation=[adworld:val_styles]",
    )
    require(
        all(name.removeprefix(ADWORLD) in SOURCES for name in named),
        f"data.train, data.validation: {', '.join(named)}; AdWorld's scenes are {', '.join(SOURCES)}",
    )
    require(
        len(scenes.shares) == 3 and min(scenes.shares) >= 0 and abs(total - 1) < 1e-6,
        f"data.scenes.shares={scenes.shares} must be three shares whose sum is 1",
    )
    require(config.objective.labels == "fine", "AdWorld's scenes have five labels: set objective.labels=fine")
    require(
        not config.maps.known,
        "scenes are judged with the maps that the networks make of them: set maps.known=false",
    )


def uses_scenes(data: RFNetDataConfig) -> bool:
    """Return whether the training pictures are AdWorld's scenes."""
    return any(name.startswith(ADWORLD) for name in data.train)
