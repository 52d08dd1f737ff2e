"""RFNet built from its config: published encoders by name, random ones of a given shape, the paper's size."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
)

from rfft.build import caption_tokenizer
from rfft.errors import UserError
from rfft.feedback.folder import CODE_OF_CLASS
from rfft.rewards.rfnet import RFNet
from rfft.rfnet.build import build_rfnet, build_tokenizer
from rfft.rfnet.config import load_config
from rfft.rfnet.data import network_inputs
from rfft.rfnet.learner import RFNetLearner
from rfft.rfnet.schema import RFNetTrainingConfig
from tests.unit.test_rfnet import small_config

CAPTION = "实木书架 oak bookcase 180 cm"
TOKENIZER = "rfnet.text_encoder.tokenizer=rf-tiny-rfnet"
RANDOM = ("rfnet.image_encoder.weights=null", "rfnet.text_encoder.weights=null")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """resnet/ and roberta/ as a hub would give them, small; the tokenizer knows Chinese and English."""
    torch.manual_seed(0)
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck", hidden_act="gelu"
    )
    ResNetModel(resnet).save_pretrained(tmp_path / "resnet")
    words = ["<s>", "<pad>", "</s>", "<unk>", *"实木书架", "oak", "bookcase", "180", "cm"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer()  # every Chinese character is a word
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "roberta")
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    return tmp_path


def settings(published: Path) -> RFNetTrainingConfig:
    config = RFNetTrainingConfig()
    network = config.rfnet
    network.image_size, network.width, network.heads = 32, 16, 2
    network.image_encoder.weights = str(published / "resnet")
    network.text_encoder.weights, network.text_encoder.max_tokens = str(published / "roberta"), 8
    return config


def test_published_encoders_give_shape_and_weights(published: Path) -> None:
    config = settings(published)
    tokenizer = build_tokenizer(config.rfnet)
    model = build_rfnet(config, tokenizer)
    assert model.config.image_encoder["hidden_sizes"] == [8, 16]
    assert model.config.image_encoder["hidden_act"] == "gelu"
    assert model.config.text_encoder["model_type"] == "roberta"
    text = RobertaModel.from_pretrained(published / "roberta", add_pooling_layer=False).state_dict()
    assert all(torch.equal(model.text_encoder.state_dict()[name], tensor) for name, tensor in text.items())
    resnet = ResNetModel.from_pretrained(published / "resnet").state_dict()
    name = "encoder.stages.1.layers.0.layer.1.convolution.weight"
    assert torch.equal(model.encoders["s"].resnet.state_dict()[name], resnet[name])


def test_chinese_and_english_captions_are_read_and_cut(published: Path, tmp_path: Path) -> None:
    config = settings(published)
    tokenizer = build_tokenizer(config.rfnet)
    model = build_rfnet(config, tokenizer).eval()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    as_a_reward = caption_tokenizer(str(tmp_path / "saved"))
    encoded = as_a_reward([CAPTION, CAPTION + " oak"], padding=True, truncation=True, return_tensors="pt")
    assert encoded.input_ids.tolist() == [[4, 5, 6, 7, 8, 9, 10, 11]] * 2  # nothing unknown, 8 tokens at most
    e_c, padding = model.encode_caption(encoded.input_ids, encoded.attention_mask)
    assert e_c.shape == (2, 8, 16) and not padding.any()


def test_an_encoder_without_its_tokenizer(published: Path, tmp_path: Path) -> None:
    """Transformers would make one up, which knows no word of the captions."""
    shutil.copy(published / "roberta/config.json", tmp_path)
    config = settings(published)
    config.rfnet.text_encoder.weights = str(tmp_path)
    with pytest.raises(UserError, match=f"no tokenizer in {tmp_path}"):
        build_tokenizer(config.rfnet)


def test_encoders_that_do_not_fit_are_named(published: Path) -> None:
    config = settings(published)
    tokenizer = build_tokenizer(config.rfnet)
    config.rfnet.text_encoder.max_tokens = 19
    with pytest.raises(UserError, match=r"max_tokens=19 is more than .*roberta takes: 18"):
        build_rfnet(config, tokenizer)
    config.rfnet.text_encoder.weights = str(published / "resnet")
    with pytest.raises(UserError, match="is a resnet; needed: bert or roberta"):
        build_rfnet(config, tokenizer)


GONE = {"o": ("encoders.o.", "fusion_modules."), "d": ("encoders.d.",), "c": ("text_", "fusion_modules.")}


@pytest.mark.parametrize("modality", [None, *GONE])
def test_another_network_is_gone_on_from(tmp_path: Path, modality: str | None) -> None:
    """All its weights; of an ablation's, all but those of the input that it goes without."""
    torch.manual_seed(0)
    whole = RFNet(small_config())
    whole.save_pretrained(tmp_path)
    drop = f"rfnet.drop=[{modality or ''}]"
    config = load_config("rfnet_paper", [f"rfnet.init={tmp_path}", drop])  # its shape does not matter
    vocabulary = range(small_config().text_encoder["vocab_size"])
    model = build_rfnet(config, vocabulary)
    own, weights = model.state_dict(), whole.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in own)
    gone = {name for name in weights if name not in own}
    prefixes = (*GONE[modality], f"modality.{modality}") if modality else ()
    assert gone == {name for name in weights if name.startswith(prefixes)}
    assert model.config.image_size == 64 and model.config.dropout == config.rfnet.dropout


def test_a_network_that_cannot_be_gone_on_from(tmp_path: Path) -> None:
    RFNet(replace(small_config(), drop=["d"])).save_pretrained(tmp_path)
    init = f"rfnet.init={tmp_path}"
    for overrides, message in (
        ([], r"goes without d: set rfnet.drop=\[d\]"),
        (["objective.labels=coarse", "rfnet.drop=[d]"], "tells 5 classes apart, .*: change objective.labels"),
        (["rfnet.drop=[d]"], "has learned another vocabulary"),
    ):
        config = load_config("rfnet_paper", [init, *overrides])
        with pytest.raises(UserError, match=message):
            build_rfnet(config, range(10_000))


@pytest.mark.parametrize("architecture", ["roberta", "bert"])
def test_random_text_encoders_take_captions_as_long_as_promised(architecture: str) -> None:
    """Whatever number the tokenizer gives to padding: RoBERTa counts its positions from there."""
    overrides = ["rfnet.image_encoder.hidden_sizes=[8,8]", "rfnet.image_encoder.depths=[1,1]"]
    overrides += [f"rfnet.text_encoder.architecture={architecture}", TOKENIZER]
    overrides += ["rfnet.text_encoder.layers=1", "rfnet.text_encoder.max_tokens=10", "rfnet.image_size=32"]
    config = load_config("rfnet_paper", [*RANDOM, *overrides])
    tokenizer = build_tokenizer(config.rfnet)
    model = build_rfnet(config, tokenizer)
    encoded = tokenizer(["oak bookcase " * 9, "oak"], padding=True, truncation=True, return_tensors="pt")
    assert encoded.input_ids.shape == (2, 10)
    e_c, _ = model.encode_caption(encoded.input_ids, encoded.attention_mask)
    assert e_c.isfinite().all()


@pytest.mark.slow
def test_an_optimizer_step_at_the_papers_size() -> None:
    """configs/rfnet_paper.yaml with random weights and one picture: about 3.6 GB."""
    AcceleratorState._reset_state(reset_partial_state=True)
    overrides = [TOKENIZER, "trainer.batch_size=1", "optimizer.warmup=0"]
    config = load_config("rfnet_paper", [*RANDOM, *overrides])
    tokenizer = build_tokenizer(config.rfnet)
    model = build_rfnet(config, tokenizer)
    assert model.config.image_encoder["depths"] == [3, 4, 6, 3] and model.position.shape == (144, 384)
    assert model.text_encoder.config.num_hidden_layers == 12
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.numel() < 400}
    accelerator = Accelerator(cpu=True, mixed_precision=config.trainer.mixed_precision)
    inputs = partial(network_inputs, tokenizer=tokenizer, device=accelerator.device)
    learner = RFNetLearner(config, accelerator, model, inputs, range(len(CODE_OF_CLASS)))
    channels = {"image": 3, "product": 4, "depth": 1, "saliency": 1}
    pictures = {
        name: torch.randint(0, 256, (1, count, 384, 384), dtype=torch.uint8)
        for name, count in channels.items()
    }
    learner.batches = iter([{**pictures, "caption": ["oak bookcase"], "label": torch.tensor([2])}])
    found = learner.step()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert math.isfinite(found["train/loss"]) and 0 < found["train/grad_norm"] < math.inf
    assert found["train/lr"] == 1e-4 and learner.counters.step == 1
    moved = {name for name, p in model.named_parameters() if name in before and not p.equal(before[name])}
    assert moved == before.keys()
