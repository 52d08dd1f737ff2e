"""From the config to objects, in plain ifs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from rfft.config.schema import Config, RewardConfig
from rfft.data.dataset import KNOWN, Samples, evaluation_source, read_samples
from rfft.data.encoded import EncodedSamples
from rfft.data.encoder import Encoder
from rfft.data.samples import Entry, Framing, Selection, Skipped
from rfft.data.sizes import as_buckets, as_size
from rfft.data.splits import parse_source
from rfft.data.store import find_store
from rfft.errors import require
from rfft.models.bundle import Bundle
from rfft.models.families import KNOWN as KNOWN_FAMILIES
from rfft.models.families.base import Family
from rfft.models.load import load_bundle, load_tiny_vae
from rfft.models.pretrained import find_folder, read_config, tokenizer_of
from rfft.objectives import OBJECTIVES
from rfft.objectives.base import Objective, ObjectiveSettings
from rfft.objectives.regularizers import make_regularizer, step_weights
from rfft.rewards.availability import Availability, Ensemble, RFNetWithMaps
from rfft.rewards.maps import load_depth, load_saliency
from rfft.rewards.rfnet import RFNet
from rfft.rewards.weighted import REWARDS, WeightedRewards
from rfft.types import Reward
from rfft.utils.checkpoint import load_weights
from rfft.utils.registry import construct, resolve

Purpose = Literal["train", "evaluate", "generate"]

EVALUATION_SEED = 0  # the grid is the same for all runs, whatever run.seed


def build_bundle(config: Config, device: torch.device | str, trained: bool = True) -> Bundle:
    """The generator on its device; `trained`: with fresh adapters, or whatever else model.train says."""
    model = config.model
    bundle = load_bundle(model.bundle, getattr(torch, model.dtype), model.controlnet, family_of(config))
    bundle.set_embedded_guidance(model.embedded_guidance)
    bundle.quantize(model.quantize, model.train, model.lora.target_modules)
    if trained:
        if model.tiny_vae is not None:
            bundle.set_tiny_vae(load_tiny_vae(model.tiny_vae, getattr(torch, model.dtype)))
        torch.manual_seed(config.run.seed)  # of the adapters' first weights
        bundle.train(list(model.train), model.lora.rank, model.lora.alpha, model.lora.target_modules)
        if model.gradient_checkpointing:
            bundle.enable_gradient_checkpointing()
    return bundle.to(device)


def family_of(config: Config) -> type[Family] | None:
    """Return the family that model.family names, a known one or a dotted path; None: the base's files say."""
    if config.model.family is None:
        return None
    known = {name: f"{kind.__module__}:{kind.__name__}" for name, kind in KNOWN_FAMILIES.items()}
    found: type[Family] = resolve("model.family", config.model.family, known)
    return found


def load_trained(config: Config, checkpoint: Path, device: torch.device | str) -> Bundle:
    """Return the tuned generator of a checkpoint: with its moving average, where one is kept."""
    averaged = (checkpoint / "ema.safetensors").is_file()
    bundle = build_bundle(config, device)
    bundle.load_adapter_state_dict(load_weights(checkpoint, "ema" if averaged else "adapter"))
    return bundle


def build_rfnet(config: Config, device: torch.device | str) -> RFNetWithMaps | None:
    """Load RFNet with its networks, frozen; None where the config has none (reward.rfnet: null)."""
    name = config.reward.rfnet
    return None if name is None else load_rfnet(config.reward, name, device)


def load_rfnet(reward: RewardConfig, name: str, device: torch.device | str) -> RFNetWithMaps:
    """Load an RFNet by its name, with the depth and saliency networks of the reward, frozen."""
    networks = load_depth(reward.depth), load_saliency(reward.saliency), caption_tokenizer(name)
    model = RFNetWithMaps(RFNet.from_pretrained(name), *networks, reward.auxiliary_grad)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_reward(config: Config, rfnet: RFNetWithMaps | None, device: torch.device | str) -> WeightedRewards:
    """Make the reward of the objective: the weighted sum of reward.terms, of which `rfnet` may be one."""
    terms: list[tuple[str, float, Reward]] = []
    for term in config.reward.terms:
        if term.use == "rfnet" and rfnet is not None:  # its scalars are the paper's: f_ac, available, ...
            others = [load_rfnet(config.reward, name, device) for name in term.options.get("ensemble", [])]
            terms.append(("", term.weight, Availability(Ensemble([rfnet, *others]) if others else rfnet)))
            continue
        reward = construct("reward.terms", term.use, term.options, REWARDS)
        terms.append((f"{term.use.rpartition(':')[2].lower()}/", term.weight, reward))
    return WeightedRewards(terms).to(device)


def build_objective(config: Config) -> Objective:
    """Make the objective with its regularizer."""
    settings = config.objective
    common = ObjectiveSettings(
        settings.guidance_scale or config.rollout.guidance_scale,
        make_regularizer(settings.regularizer),
        settings.beta_start if isinstance(settings.beta, str) else settings.beta,
        settings.precision,
        config.trainer.decode_batch,
        step_weights(settings.step_weights, config.rollout.steps, config.rollout.last),
    )
    objective: Objective = construct(
        "objective.use", settings.use, {"settings": common, **settings.options}, OBJECTIVES
    )
    return objective


def load_tokenizer(network: str) -> Any:
    """The tokenizer in a network's folder."""
    return tokenizer_of(find_folder(network))


def caption_tokenizer(rfnet: str) -> Any:
    """The tokenizer in an RFNet folder; its limit is what that RFNet's text encoder takes."""
    folder, tokenizer = find_folder(rfnet), load_tokenizer(rfnet)
    # RoBERTa's two first places belong to padding.
    places = read_config(RFNet, folder).text_encoder["max_position_embeddings"] - 2
    tokenizer.model_max_length = min(tokenizer.model_max_length, places)
    return tokenizer


def build_samples(config: Config, purpose: Purpose, skipped: list[Skipped] | None = None) -> Samples:
    """List the samples that are trained on, evaluated on, or painted by `rfft generate` (all products).

    skipped: is given the products that cannot be used, of those that are looked at now, if data.on_error is
    skip; otherwise they are errors.
    """
    data = config.data
    if purpose == "evaluate":
        return read_samples(evaluated_products(config), _evaluation(config))
    source = data.products
    if purpose == "train":
        source = trained_products(config)
        _require_another_split(source, config)
    selection = Selection(
        framing=_framing(config),
        prompts=data.prompts,
        count=data.count,
        prompts_per_product=data.prompts_per_product,
        seed=config.run.seed,
        holdout=data.holdout,
        options=data.options,
    )
    return read_samples(source, selection, skipped if data.on_error == "skip" else None)


def trained_products(config: Config) -> str:
    """Return the source of what is trained on: data.products, without what is held out."""
    data = config.data
    is_split = data.holdout is None or parse_source(data.products)[1] is not None
    return data.products if is_split else f"{data.products}:train"


def evaluated_products(config: Config) -> str:
    """Return the source of what is evaluated on."""
    return config.evaluate.products or evaluation_source(config.data.products, config.data.holdout)


def validated_products(config: Config) -> str:
    """Return the source of what `evaluate.every` measures; raises UserError if that is evaluated on, too."""
    data, named = config.data, config.evaluate.validation.products
    source = named or evaluation_source(data.products, data.holdout, "val")
    require(
        source != evaluated_products(config) or parse_source(source)[0] not in KNOWN,
        f"{source} is both evaluate.products and evaluate.validation.products: what chooses the best "
        "checkpoint must not be what is reported; name another split, or set evaluate.every=0",
    )
    return source


def reference_source(config: Config) -> str | None:
    """Return where the pictures come from that KID compares with; raises UserError for another split's."""
    evaluate, products = config.evaluate, evaluated_products(config)
    (name, split), (known, wanted) = parse_source(evaluate.reference or ""), parse_source(products)
    require(
        name != known or known not in KNOWN or split == wanted,
        f"evaluate.reference={evaluate.reference} is of another split than the products, {products}: set "
        "evaluate.reference=auto",
    )
    if evaluate.reference != "auto":
        return evaluate.reference
    return products if known in KNOWN else None


def _require_another_split(trained_on: str, config: Config) -> None:
    """Raise UserError if a split of a known data set is both trained on and evaluated on."""
    name, _ = parse_source(trained_on)
    clash = config.evaluate.enabled and name in KNOWN and evaluated_products(config) == trained_on
    require(
        not clash,
        f"{trained_on} is both trained on and evaluated on; set data.products={name}:train and "
        f"evaluate.products={name}:test",
    )


def _evaluation(config: Config) -> Selection:
    data, settings = config.data, config.evaluate
    named = settings.products is not None
    return Selection(
        framing=_framing(config),
        prompts=settings.prompts if named else settings.prompts or data.prompts,
        count=settings.count,
        prompts_per_product=settings.prompts_per_product,
        seed=EVALUATION_SEED,
        holdout=data.holdout,
        options=settings.options if named else data.options,
    )


def _framing(config: Config) -> Framing:
    data = config.data
    return Framing(
        size=as_size(data.image_size),
        scale=None if data.keep_location else data.image_scale,
        white_level=data.white_level if data.white_to_alpha else None,
        max_pixels=data.max_pixels,
        buckets=as_buckets(data.buckets, as_size(data.image_size)),
    )


def build_conditions(
    config: Config, bundle: Bundle, samples: Samples, change: Callable[[Entry], Entry] | None = None
) -> EncodedSamples:
    """Return what the generator needs of samples, encoded when asked for; `change`: of their prompts."""
    data = config.data
    return EncodedSamples(
        samples,
        Encoder(bundle, as_size(data.image_size)),
        find_store(data.cache, data.cache_gb),
        (data.canny_low, data.canny_high),
        0 if samples.in_memory else data.workers,
        change or (lambda entry: entry),
    )
