"""The settings of `rfft preference train` and `rfft aesthetic train`, their meanings and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rfft.config.schema import EmaConfig, RunConfig, TrackerConfig, setting
from rfft.feedback.votes import DEFECTS
from rfft.rfnet.schema import RFNetOptimizerConfig, RFNetTrainerConfig


@dataclass
class OpinionNetworkConfig:
    # embedded (EfficientNet-Lite0 and rf-tiny's text encoder), or a CLIP model with its tokenizer: a folder
    # or a hub id, such as openai/clip-vit-large-patch14 or laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
    encoder: str = "embedded"
    # heads: the encoders stay as they are, and what they see of each picture is kept in memory. Of CLIP with
    # one dimension there is no head but the scale: train all.
    train: Literal["heads", "all"] = "heads"
    width: int = setting(256, least=1)  # of the joint space, or of the hidden layer; CLIP has its own
    heads: int = setting(4, least=1)  # of cross-attention, where there are several dimensions
    layers: int = setting(1, least=1)
    dropout: float = setting(0.3, least=0, most=1)


@dataclass
class OpinionDataConfig:
    """Votes: a store (feedback.db), what `rfft review export` wrote of it, or Pick-a-Pic's columns."""

    train: str = ""
    validation: str | None = None  # null: a share of the prompts of `train`
    validation_share: float = setting(0.2, above=0, most=0.5)
    workers: int = setting(0, least=0)  # processes that read pictures, where all is trained


@dataclass
class PreferenceObjectiveConfig:
    # What is preferred, by its name in Good/Same/Bad rounds, and words that stand for it (MPS's condition).
    # Votes of `rfft review serve --task pairs` and Pick-a-Pic's are about `overall`. The first one counts
    # where none is named.
    dimensions: dict[str, str] = field(default_factory=lambda: {"overall": "overall"})
    # A pair counts inversely to how often its pictures, or its prompt, occur.
    weights: Literal["picture", "prompt", "none"] = "picture"


@dataclass
class AestheticObjectiveConfig:
    defects: list[str] = setting(list(DEFECTS))  # those that are told apart
    defect_weight: float = setting(0.5, least=0)  # of their cross-entropy beside the scores' distance


@dataclass
class OpinionOptimizerConfig(RFNetOptimizerConfig):
    lr: float = setting(5e-4, above=0)
    weight_decay: float = setting(0.1, least=0)
    schedule: Literal["drops", "one_cycle"] = "one_cycle"
    warmup: int = setting(20, least=0)


@dataclass
class OpinionTrainerConfig(RFNetTrainerConfig):
    epochs: int = setting(30, least=1)
    batch_size: int = setting(32, least=1)  # examples per process and micro-batch: a pair has two pictures
    patience: int = setting(0, least=0)


@dataclass
class OpinionConfig:
    """What both trainings have in common."""

    run: RunConfig = field(default_factory=RunConfig)
    network: OpinionNetworkConfig = field(default_factory=OpinionNetworkConfig)
    data: OpinionDataConfig = field(default_factory=OpinionDataConfig)
    optimizer: OpinionOptimizerConfig = field(default_factory=OpinionOptimizerConfig)
    trainer: OpinionTrainerConfig = field(default_factory=OpinionTrainerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)  # what is validated and exported, if enabled
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


@dataclass
class PreferenceTrainingConfig(OpinionConfig):
    preference: PreferenceObjectiveConfig = field(default_factory=PreferenceObjectiveConfig)


@dataclass
class AestheticTrainingConfig(OpinionConfig):
    aesthetic: AestheticObjectiveConfig = field(default_factory=AestheticObjectiveConfig)


# A run may be continued with other values of these; any other difference makes it another run.
MAY_CHANGE = (
    *("run.out", "trainer.epochs", "trainer.steps", "trainer.max_minutes", "trainer.patience"),
    *("trainer.checkpoint_every", "trainer.keep", "trainer.timeout_minutes", "data.workers", "tracker"),
    *("trainer.batch_size", "trainer.accumulation"),
)
