"""From an RFNet training config to the network and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig

from rfft.errors import UserError
from rfft.models.pretrained import ASSETS, tokenizer_of
from rfft.rewards.rfnet import RFNet, RFNetConfig
from rfft.rfnet.config import ImageEncoderConfig, RFNetTrainingConfig, TextEncoderConfig
from rfft.types import COARSE_LABELS, LABELS

RESNET = ("embedding_size", "hidden_sizes", "depths", "layer_type", "hidden_act", "downsample_in_bottleneck")
TEXT = (
    *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pad_token_id"),
)
TEXT_KINDS = ("bert", "roberta", "xlm-roberta")


def build_tokenizer(text: TextEncoderConfig) -> Any:
    source = text.tokenizer or text.weights or ""
    tokenizer = tokenizer_of(ASSETS / source if (ASSETS / source).is_dir() else source)
    if tokenizer.pad_token_id is None:
        raise UserError(f"rfnet.text_encoder: the tokenizer of {source} has no padding token; name another")
    tokenizer.model_max_length = text.max_tokens
    return tokenizer


def build_rfnet(config: RFNetTrainingConfig, tokenizer: Any) -> RFNet:
    """The network with its first weights: published encoders where they are named, random ones elsewhere."""
    torch.manual_seed(config.run.seed)
    model = RFNet(network_config(config, tokenizer))
    model.load_encoders(config.rfnet.image_encoder.weights, config.rfnet.text_encoder.weights)
    return model


def network_config(config: RFNetTrainingConfig, tokenizer: Any) -> RFNetConfig:
    """Its shape; of published encoders just the configs are read."""
    settings = config.rfnet
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
