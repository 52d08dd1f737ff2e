"""The settings of `rfft rfnet train`, their meanings and defaults (as config/schema.py has RFFT's).

The defaults are the paper's (arXiv 2408.00418) where it says something.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rfft.config.schema import EmaConfig, RunConfig, TrackerConfig, setting

ADWORLD = "adworld:"  # before a source's name (adworld/styles.py), where data.train has AdWorld's scenes
VOTES = "votes:"  # before a store of `rfft review`, or a file that it exported (rfnet/votes.py)


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
    init: str | None = None  # an RFNet to go on from: embedded, or a folder; its own shape then counts
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
class ScenesConfig:
    """AdWorld's scenes as a generator shows them, drawn where data.train names adworld:SPLIT."""

    bundle: str = "rf-tiny"  # the generator: rf-tiny (embedded), or a folder
    render: int = setting(30_000, least=1)  # scenes as AdWorld draws them
    vae: int = setting(5_000, least=1)  # after a round trip through the autoencoder
    x0_hat: int = setting(20_000, least=1)  # as foreseen in one step from noise at one of the last timesteps
    shares: list[float] = setting([0.35, 0.15, 0.5])  # of the batches that are render, vae, x0_hat
    validation: int = setting(800, least=1)  # scenes, each shown in all three ways
    seed: int = setting(1, least=0)
    augment: bool = True  # mirrored, recoloured, blurred; strange words in the product's name


@dataclass
class RFNetDataConfig:
    """Folders in RF1M's form (rfft/feedback/folder.py), people's votes, shards, or AdWorld."""

    # Folders, also of shards (`rfft data prepare-rf1m`); votes:feedback.db, what people said on the page of
    # `rfft review`; or [adworld:rfnet], see `scenes`.
    train: list[str] = setting([])
    validation: list[str] = setting([])  # empty: a share of the training folders' captions (not of shards)
    validation_share: float = setting(0.05, above=0, most=0.5)
    image_size: int | None = setting(None, least=16)  # pictures are brought to it; null: the network's
    mirror: bool = True  # half of the training pictures, by chance; scenes: see scenes.augment
    workers: int = setting(0, least=0)  # processes that read pictures; scenes are in memory
    scenes: ScenesConfig = field(default_factory=ScenesConfig)


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
    agreement: bool = True  # pictures that several people labelled weigh as much as they agree
    # Of a second loss: a linear layer, thrown away afterwards, reads the scene's attributes off the verdict.
    attributes: float = setting(0.0, least=0)
    regions: float = setting(0.0, least=0)  # of a third: it tells where props, grown parts and clutter are
    # Half of a batch is moved towards another verdict, by at most this much a pixel value in [0, 1]; 0: none.
    perturbation: float = setting(0.0, least=0, most=0.1)


@dataclass
class RFNetOptimizerConfig:
    """AdamW, and how its rate changes.

    drops: it rises linearly for `warmup` steps and is multiplied by drop_factor at some epochs; one_cycle: it
    rises for `warmup` steps and falls along a cosine to nothing at the run's last step.
    """

    lr: float = setting(1e-4, above=0)  # the highest
    schedule: Literal["drops", "one_cycle"] = "drops"
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
    compile: bool = False  # torch.compile: minutes at first, then faster steps
    half: bool = False  # the trained network is stored in half precision


@dataclass
class RFNetTrainingConfig:
    run: RunConfig = field(default_factory=RunConfig)
    rfnet: RFNetNetworkConfig = field(default_factory=RFNetNetworkConfig)
    data: RFNetDataConfig = field(default_factory=RFNetDataConfig)
    maps: MapsConfig = field(default_factory=MapsConfig)
    objective: RFNetObjectiveConfig = field(default_factory=RFNetObjectiveConfig)
    optimizer: RFNetOptimizerConfig = field(default_factory=RFNetOptimizerConfig)
    trainer: RFNetTrainerConfig = field(default_factory=RFNetTrainerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)  # what is validated and exported, if enabled
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


# A run may be continued with other values of these; any other difference makes it another run.
MAY_CHANGE = (
    *("run.out", "trainer.epochs", "trainer.steps", "trainer.max_minutes", "trainer.patience"),
    *("trainer.checkpoint_every", "trainer.keep", "trainer.timeout_minutes", "data.workers"),
    *("maps.cache", "tracker"),
    # For another number of processes, or less memory; see RFNetLearner.load.
    *("trainer.batch_size", "trainer.accumulation"),
)
