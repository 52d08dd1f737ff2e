"""From an RFNet training config to the network and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig

from rfft.build import caption_tokenizer
from rfft.errors import UserError
from rfft.models.pretrained import ASSETS, find_folder, read_config, tokenizer_of
from rfft.rewards.rfnet import RFNet, RFNetConfig
from rfft.rfnet.schema import ImageEncoderConfig, RFNetNetworkConfig, RFNetTrainingConfig, TextEncoderConfig
from rfft.types import COARSE_LABELS, LABELS

RESNET = ("embedding_size", "hidden_sizes", "depths", "layer_type", "hidden_act", "downsample_in_bottleneck")
TEXT = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id"),
)
TEXT_KINDS = ("bert", "roberta", "xlm-roberta")


def build_tokenizer(network: RFNetNetworkConfig) -> Any:
    """Return the tokenizer of the captions: the one named, or that of the network or encoder begun with."""
    text = network.text_encoder
    if text.tokenizer is None and network.init is not None:
        return caption_tokenizer(network.init)
    source = text.tokenizer or text.weights or ""
    tokenizer = tokenizer_of(ASSETS / source if (ASSETS / source).is_dir() else source)
    if tokenizer.pad_token_id is None:
        raise UserError(f"rfnet.text_encoder: the tokenizer of {source} has no padding token; name another")
    tokenizer.model_max_length = text.max_tokens
    return tokenizer


def build_rfnet(config: RFNetTrainingConfig, tokenizer: Any) -> RFNet:
    """Return the network with its first weights.

    They are those of rfnet.init, or published encoders' where they are named; what is left is random.
    """
    torch.manual_seed(config.run.seed)
    model = RFNet(network_config(config, tokenizer))
    if config.rfnet.init is not None:
        take_weights(model, RFNet.from_pretrained(config.rfnet.init))
    else:
        model.load_encoders(config.rfnet.image_encoder.weights, config.rfnet.text_encoder.weights)
    return model


def take_weights(model: RFNet, source: RFNet) -> None:
    """Copy the weights of an RFNet, less those of inputs that `model` goes without."""
    weights = source.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})


def network_config(config: RFNetTrainingConfig, tokenizer: Any) -> RFNetConfig:
    """Return the network's shape; of published encoders just the configs are read."""
    settings = config.rfnet
    if settings.init is not None:
        return _shape_of(settings.init, config, tokenizer)
    return RFNetConfig(
        image_size=settings.image_size,
        image_encoder=_image_shape(settings.image_encoder),
        text_encoder=_text_shape(settings.text_encoder, tokenizer),
        width=settings.width,
        heads=settings.heads,
        n1=settings.n1,
        n2=settings.n2,
        ffm_kernel=settings.ffm_kernel,
        dropout=settings.dropout,
        drop=list(settings.drop),
        num_labels=len(LABELS if config.objective.labels == "fine" else COARSE_LABELS),
        picture_size=config.data.image_size,
        depth=config.maps.depth,
        saliency=config.maps.saliency,
    )


def _shape_of(init: str, config: RFNetTrainingConfig, tokenizer: Any) -> RFNetConfig:
    """Return the shape of a network to go on from, with what the config may change of it."""
    known: RFNetConfig = read_config(RFNet, find_folder(init))
    labels = len(LABELS if config.objective.labels == "fine" else COARSE_LABELS)
    if known.num_labels != labels:
        raise UserError(
            f"rfnet.init={init} tells {known.num_labels} classes apart, objective.labels="
            f"{config.objective.labels} are {labels}: change objective.labels"
        )
    if lacking := sorted(set(known.drop) - set(config.rfnet.drop)):
        raise UserError(
            f"rfnet.init={init} goes without {', '.join(lacking)}: set rfnet.drop=[{','.join(known.drop)}]"
        )
    if len(tokenizer) > known.text_encoder["vocab_size"]:
        raise UserError(
            f"rfnet.init={init} has learned another vocabulary: leave rfnet.text_encoder.tokenizer out"
        )
    return replace(
        known,
        dropout=config.rfnet.dropout,
        drop=list(config.rfnet.drop),
        picture_size=config.data.image_size,
        depth=config.maps.depth,
        saliency=config.maps.saliency,
    )


def _image_shape(encoder: ImageEncoderConfig) -> dict[str, Any]:
    if encoder.weights is None:
        names = ("embedding_size", "hidden_sizes", "depths", "layer_type")
        return {name: getattr(encoder, name) for name in names}
    published = _published(encoder.weights, ("resnet",))
    return {name: getattr(published, name) for name in RESNET}


def _text_shape(encoder: TextEncoderConfig, tokenizer: Any) -> dict[str, Any]:
    padding = tokenizer.pad_token_id
    if encoder.weights is not None:
        shape = {name: getattr(_published(encoder.weights, TEXT_KINDS), name) for name in TEXT}
        if encoder.max_tokens > shape["max_position_embeddings"] - 2:
            raise UserError(
                f"rfnet.text_encoder.max_tokens={encoder.max_tokens} is more than {encoder.weights} takes: "
                f"{shape['max_position_embeddings'] - 2}"
            )
        return shape
    shape = {
        "model_type": encoder.architecture,
        "vocab_size": len(tokenizer),
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads,
        "intermediate_size": encoder.intermediate_size,
        "hidden_dropout_prob": encoder.dropout,
        "attention_probs_dropout_prob": encoder.dropout,
        "max_position_embeddings": encoder.max_tokens + 2,
        "pad_token_id": padding,
    }
    if encoder.architecture == "roberta":  # it counts positions from the padding's number on
        positions = encoder.max_tokens + padding + 1
        shape |= {
            "max_position_embeddings": max(positions, encoder.max_tokens + 2),
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        }
    return shape


def _published(source: str, kinds: Sequence[str]) -> Any:
    """The config of a published encoder."""
    try:
        found = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"encoder {source}: neither a folder nor a hub id that loads ({reason})") from error
    if found.model_type not in kinds:
        raise UserError(f"encoder {source} is a {found.model_type}; needed: {' or '.join(kinds)}")
    return found
