"""The configuration of `rfft rfnet train`: settings, meanings and defaults (see config/schema.py).

The defaults are the paper's (arXiv 2408.00418) where it says something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from rfft.config.load import find_config, load_as
from rfft.config.read import groups
from rfft.config.schema import Config, RunConfig, TrackerConfig, setting
from rfft.errors import require
from rfft.rewards.rfnet_config import CAPTION, CHANNELS

MODALITIES = (*CHANNELS, CAPTION)


@dataclass
class ImageEncoderConfig:
    """A ResNet: a published one with its weights, or random weights of the shape given here (ResNet-50)."""

    weights: str | None = None  # folder or hub id; its own shape then counts, not the one below
    embedding_size: int = setting(64, least=1)
    hidden_sizes: list[int] = setting([256, 512, 1024, 2048])
    depths: list[int] = setting([3, 4, 6, 3])
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"


@dataclass
class TextEncoderConfig:
    """RoBERTa or BERT: a published one with its weights, or random weights of the shape given here (base)."""

    weights: str | None = None  # folder or hub id; its own shape then counts, not the one below
    tokenizer: str | None = None  # folder, hub id or embedded RFNet; null: the one that comes with weights
    max_tokens: int = setting(64, least=4)  # captions are cut there
    architecture: Literal["roberta", "bert"] = "roberta"
    hidden_size: int = setting(768, least=1)
    layers: int = setting(12, least=1)
    heads: int = setting(12, least=1)
    intermediate_size: int = setting(3072, least=1)
    dropout: float = setting(0.1, least=0, most=1)


@dataclass
class RFNetNetworkConfig:
    image_size: int = setting(384, least=16)  # pixels, square
    width: int = setting(384, least=1)
    heads: int = setting(8, least=1)
    n1: int = setting(1, least=1)  # feature fusion modules, eq (3)
    n2: int = setting(3, least=1)  # self-attention layers, eq (4)
    ffm_kernel: int = setting(1, least=1)  # side of the convolutions in eq (3), odd; 1 in the paper
    dropout: float = setting(0.1, least=0, most=1)
    drop: list[str] = setting([])  # modalities left out, of o, g, d, s, c: the ablation
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)


@dataclass
class RFNetDataConfig:
    """Folders in RF1M's form (rfft/feedback/folder.py), or of shards (`rfft data prepare-rf1m`)."""

    train: list[str] = setting([])
    validation: list[str] = setting([])  # empty: a share of the training folders' captions (not of shards)
    validation_share: float = setting(0.05, above=0, most=0.5)
    image_size: int | None = setting(None, least=16)  # pictures are brought to it; null: rfnet.image_size
    mirror: bool = True  # half of the training pictures, by chance
    workers: int = setting(0, least=0)  # processes that read pictures


@dataclass
class MapsConfig:
    """Depth and saliency: made once by frozen networks where the data has none, and kept."""

    depth: str = "rf-tiny-depth"  # as reward.depth and reward.saliency in rfft/config/schema.py
    saliency: str = "rf-tiny-saliency"
    known: bool = True  # use the maps that come with the data; false: make all of them
    cache: str | None = None  # where made maps are kept; null: beside the data


@dataclass
class RFNetObjectiveConfig:
    labels: Literal["fine", "coarse"] = "fine"  # five classes, or available or not
    class_weights: Literal["balanced", "none"] = "balanced"
    label_smoothing: float = setting(0.0, least=0, most=1)


@dataclass
class RFNetOptimizerConfig:
    """AdamW; the rate rises linearly for `warmup` steps and is multiplied by drop_factor at some epochs."""

    lr: float = setting(1e-4, above=0)
    drop_at: list[int] = setting([5])  # epochs done
    drop_factor: float = setting(0.1, above=0, most=1)
    betas: list[float] = setting([0.9, 0.999])
    weight_decay: float = setting(0.01, least=0)
    warmup: int = setting(0, least=0)
    max_grad_norm: float = setting(1.0, above=0)


@dataclass
class RFNetTrainerConfig:
    epochs: int = setting(10, least=1)
    steps: int | None = setting(None, least=1)  # stop after so many optimizer steps, whatever `epochs` says
    max_minutes: float | None = setting(None, above=0)  # stop training in time
    batch_size: int = setting(16, least=1)  # pictures per process and micro-batch
    accumulation: int = setting(1, least=1)  # micro-batches per optimizer step
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    validate_every: int | None = setting(None, least=1)  # optimizer steps; null: once per epoch
    patience: int = setting(3, least=0)  # validations in a row without a better AP that end it; 0: any number
    checkpoint_every: int = setting(500, least=1)
    keep: int = setting(2, least=1)  # newest checkpoints kept
    timeout_minutes: float = setting(30, above=0)  # so long a process waits for another one, then it gives up


@dataclass
class RFNetTrainingConfig:
    run: RunConfig = field(default_factory=RunConfig)
    rfnet: RFNetNetworkConfig = field(default_factory=RFNetNetworkConfig)
    data: RFNetDataConfig = field(default_factory=RFNetDataConfig)
    maps: MapsConfig = field(default_factory=MapsConfig)
    objective: RFNetObjectiveConfig = field(default_factory=RFNetObjectiveConfig)
    optimizer: RFNetOptimizerConfig = field(default_factory=RFNetOptimizerConfig)
    trainer: RFNetTrainerConfig = field(default_factory=RFNetTrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


# A run may be continued with other values of these; any other difference makes it another run.
MAY_CHANGE = (
    *("run.out", "trainer.epochs", "trainer.steps", "trainer.max_minutes", "trainer.patience"),
    *("trainer.checkpoint_every", "trainer.keep", "trainer.timeout_minutes", "data.workers"),
    *("maps.cache", "tracker"),
    # For another number of processes, or less memory; see RFNetLearner.load.
    *("trainer.batch_size", "trainer.accumulation"),
)


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
    require(config.data.train, "data.train is empty: name folders in RF1M's form, as in data.train=[scenes]")
    unknown = sorted(set(config.rfnet.drop) - set(MODALITIES))
    require(not unknown, f"rfnet.drop names {', '.join(unknown)}: choose from {', '.join(MODALITIES)}")
    require(
        set(CHANNELS) - set(config.rfnet.drop),
        "rfnet.drop leaves no picture to judge: keep one of o, g, d, s",
    )
    _check_encoders(config.rfnet)


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
        text.weights or text.tokenizer,
        "rfnet.text_encoder has neither weights nor tokenizer: name one, for example "
        "rfnet.text_encoder.tokenizer=rf-tiny-rfnet",
    )
