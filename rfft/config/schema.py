"""The configuration: every setting, its type, its meaning and its default, here and in rollout.py.

load.py reads a config into these classes, checks.py refuses combinations that cannot work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING

from rfft.config.rollout import RolloutConfig, setting

TrainMode = Literal["denoiser_lora", "controlnet_lora", "controlnet"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass
class RunConfig:
    name: str = ""  # the run's folder below `out`; empty: the config file's name
    seed: int = setting(0, least=0)
    out: str = "runs"


@dataclass
class LoraConfig:
    rank: int = setting(16, least=1)
    alpha: float = setting(16.0, above=0)  # the adapter is scaled by alpha / rank
    target_modules: list[str] = setting(ATTENTION)  # name endings, as in PEFT


@dataclass
class ModelConfig:
    bundle: str = "rf-tiny"  # rf-tiny (embedded), a local folder, or a hub id
    # sd, sdxl, kolors, sd3, flux, flux_fill, qwen_image, or package.module:Name; null: what the bundle's
    # model_index.json says.
    family: str | None = None
    controlnet: str | None = None  # folder or hub id, for a base model that comes without a ControlNet
    embedded_guidance: float = setting(3.5, least=0)  # that FLUX.1-dev is told: its guidance is distilled
    tiny_vae: str | None = None  # small decoder, in the training step alone: madebyollin/taesd
    # That the frozen weights are kept in, a trained ControlNet's frozen copy too; what is trained is float32
    # anyway. Where objective.precision is fp32 or tf32, the denoiser computes in it all the same.
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    # int8: linear layers of denoiser and ControlNet that are not trained take a quarter of float32's memory.
    quantize: Literal["none", "int8"] = "none"
    train: list[TrainMode] = setting(["denoiser_lora"])
    lora: LoraConfig = field(default_factory=LoraConfig)
    gradient_checkpointing: bool = False  # of denoiser and VAE: less memory, about a third more time


@dataclass
class DataConfig:
    # Folder of RGBA images, JSON-lines manifest, adworld:SPLIT, or package.module:Name (docs/products.md).
    products: str = "adworld:train"
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of a data set of one's own
    # Share of the products that is not trained on: half of it is :val, half :test. Or a folder of others.
    holdout: float | str | None = setting(None, above=0, most=0.9)
    prompts: str | None = None  # prompt file in the official form; null: the products' own prompts
    count: int | None = setting(None, least=1)  # use only the first products; AdWorld: 500 unless said here
    prompts_per_product: int = setting(1, least=1)  # of the prompt file, or of AdWorld's grammar
    image_size: Any = 64  # pixels: of a square, or [height, width]
    # Canvases by the products' own proportions: [[h, w], ...], or auto, of as many pixels as image_size.
    buckets: Any = setting(None, nested=True)
    image_scale: float = setting(0.7, above=0, most=1)  # the product's longer side as a share of the canvas
    keep_location: bool = False  # the pictures are framed as they should be: no zoom on the product
    white_to_alpha: bool = False  # images without alpha: white becomes transparent
    white_level: int = setting(255, least=1, most=255)  # least value of all three channels to count as white
    max_pixels: int = setting(50_000_000, least=1)  # larger pictures are refused
    on_error: Literal["stop", "skip"] = "stop"  # a picture that cannot be used; skipped: RUN/skipped.jsonl
    # Folder for encoded products and prompts, for all runs; auto: $RFFT_CACHE or ~/.cache/rfft; null: none.
    # On a disk of the machine's own: an LMDB does not work on network file systems.
    cache: str | None = "auto"
    cache_gb: float = setting(20.0, above=0)  # beyond that the oldest ones go
    workers: int = setting(2, least=0)  # threads of a process that read the next batches; 0: none
    canny_low: int = setting(100, least=0)  # thresholds of the edge detector, on an 8-bit scale
    canny_high: int = setting(200, least=1)


@dataclass
class RewardTermConfig:
    """See docs/rewards.md for those that are there, and for a template of your own."""

    use: str = MISSING  # rfnet, pickscore, aesthetic, image_reward, or package.module:Name
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)  # its keyword arguments


@dataclass
class RewardConfig:
    """What is trained for, and RFNet with its networks: the name of an embedded one, or a folder."""

    # F_total = sum of weight * loss + beta * regularizer; the loss of rfnet is F_AC.
    terms: list[RewardTermConfig] = setting([RewardTermConfig("rfnet")])
    # Judges in evaluations and generation too. null: none, and what needs its verdict is left out.
    rfnet: str | None = "rf-tiny-rfnet"
    depth: str = "rf-tiny-depth"  # or a DPT or Depth Anything model of transformers: a folder or a hub id
    saliency: str = "rf-tiny-saliency"  # u2netp: U2-Net, embedded, for real pictures
    auxiliary_grad: bool = True  # does the gradient pass through depth and saliency?


@dataclass
class ObjectiveConfig:
    # How a verdict becomes a gradient: rfft (the paper's), refl, draft-k, draft-lv, drtune, flowbp-sparse,
    # flowbp-bridge, leapalign; without a gradient of the rewards ddpo, nft, dpo. A name also sets what
    # config/presets.py has under it, unless the config does. Or package.module:Name (docs/objectives.md).
    use: str = "rfft"
    options: dict[str, Any] = field(default_factory=dict)  # its keyword arguments
    # Of the training rollout; null: rollout.guidance_scale.
    guidance_scale: float | None = setting(None, least=1)
    # cc, kl, norm, none, package.module:Name, or a sum: cc + 20 * norm
    regularizer: str = "cc"
    # F_total = rewards' losses + beta * regularizer. auto: such that the regularizer's drift is `drift`.
    beta: float | int | str = setting(0.02, least=0)
    drift: float = setting(0.02, above=0)  # of auto: 0.02 is 2 % of the reference's own size
    beta_start: float = setting(0.02, above=0)  # of auto: where it begins; it stays within a factor of 100
    beta_rate: float = setting(0.1, above=0, most=1)  # of auto: its largest relative change in a step
    # Of the regularizer, from the first to the last step that may be trained, on straight lines between.
    step_weights: list[float] = setting([1.0])
    # Of its denoiser forwards: fp32 is exact, tf32 lets CUDA round inputs of products and convolutions to 10
    # bits, bf16 and fp16 run under autocast. Half would drown a small regularizer (docs/objectives.md).
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


@dataclass
class OptimizerConfig:
    """AdamW; the rate rises linearly for `warmup` steps and then stays."""

    lr: float = setting(1e-5, above=0)
    betas: list[float] = setting([0.9, 0.999])
    weight_decay: float = setting(0.01, least=0)
    warmup: int = setting(0, least=0)
    max_grad_norm: float = setting(1.0, above=0)


@dataclass
class TrainerConfig:
    steps: int = setting(1000, least=1)  # optimizer steps
    batch_size: int = setting(4, least=1)  # images per process and micro-batch
    accumulation: int = setting(4, least=1)  # micro-batches per optimizer step
    decode_batch: int | None = setting(None, least=1)  # pictures decoded and judged at a time; null: all
    # Of rollout, decoder and reward (see objective.precision).
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every: int = setting(100, least=1)
    keep: int = setting(2, least=1)  # newest checkpoints kept
    sample_every: int = setting(100, least=0)  # image grids at fixed seeds; 0: none
    max_minutes: float | None = setting(None, above=0)  # stop training in time, whatever `steps` says
    profile: int = setting(0, least=0)  # steps that torch's profiler traces, from the second on: RUN/profile
    timeout_minutes: float = setting(30, above=0)  # so long a process waits for another one, then it gives up


@dataclass
class EmaConfig:
    enabled: bool = False
    decay: float = setting(0.999, above=0, most=1)


@dataclass
class ValidationConfig:
    """The grid that `evaluate.every` measures on the way, which chooses the best checkpoint.

    None of its products may be among those of `evaluate`, on which the run is reported.
    """

    # As data.products; null: the validation part of data.products, with its prompts and options.
    products: str | None = None
    prompts: str | None = None  # as data.prompts
    count: int = setting(24, least=1)  # products
    prompts_per_product: int = setting(1, least=1)
    seeds: int = setting(2, least=1)


@dataclass
class EvaluateConfig:
    """The fixed grid products x prompts x seeds on which base and tuned model are compared."""

    enabled: bool = True
    # As data.products; null: the held-out part of data.products, with its prompts and options.
    products: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # as data.options
    prompts: str | None = None  # as data.prompts
    count: int = setting(24, least=1)  # products
    prompts_per_product: int = setting(2, least=1)
    seeds: int = setting(2, least=1)  # images per product and prompt; diversity needs two
    batch_size: int = setting(16, least=1)  # pictures painted at a time; trainer.sample_every's, too
    max_attempts: int = setting(5, least=1)  # of recurrent generation
    judge: str | None = "rf-tiny-judge"  # a second network, never trained against; null: none
    # Another RFNet, with reward's depth and saliency, never trained against: it chooses the best checkpoint,
    # and where RFNet's rate runs away from its own, that is reward hacking. null: RFNet itself chooses.
    monitor: str | None = None
    probe: str | None = "rf-tiny-probe"  # reads surface, place, props and light off the image; null: none
    # Available images for KID: a folder, or adworld:SPLIT. auto: of AdWorld's products, those of their split.
    reference: str | None = "auto"  # null: no KID
    # For real bases (docs/metrics.md); each null or false: not measured. CLIP model of the CLIP score, a
    # folder or a hub id: openai/clip-vit-large-patch14.
    clip: str | None = None
    pickscore: str | None = None  # the same for PickScore: yuvalkirstain/PickScore_v1, RUN/preference
    aesthetic: str | None = None  # RUN/aesthetic of `rfft aesthetic train`
    fid: Literal["none", "efficientnet", "clip"] = "none"  # whose features; compares with `reference`
    fidelity: bool = False  # PSNR and SSIM of the product, as the generator shows it before it is pasted
    # Prompt engineering: what is painted, while pictures are judged by the prompts as they are.
    quality_words: str = ""  # added to every prompt
    negative_prompt: str | None = None  # in place of the prompts' own; null: these
    # Metrics of what recurrent generation delivers: a refused picture is painted anew, max_attempts in all.
    only_accepted: bool = False
    # Also during training, in optimizer steps, on the grid of `validation`; 0: only before and after.
    every: int = setting(0, least=0)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    # Guardrails, as shares of the base model's. Without a probe, CLIP score stands for alignment.
    min_alignment: float = setting(0.9, least=0)
    min_diversity: float = setting(0.9, least=0)
    max_gap: float = setting(0.15, least=0)  # so much may RFNet's rate gain on the monitor's; 0.15: 15 points
    stop_at_guardrail: bool = False  # otherwise only warn


@dataclass
class TrackerConfig:
    kind: Literal["none", "wandb", "tensorboard"] = "none"
    project: str = "rfft"
    group: str | None = None
    tags: list[str] = setting([])


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
