"""RFNet and its companions: shapes, eq (3) by hand, dropped modalities, gradients, save and load."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from rfft.errors import UserError
from rfft.models.layers import composite_on_grey, resize
from rfft.rewards.judge import Judge, JudgeConfig
from rfft.rewards.maps import MapNet, MapNetConfig
from rfft.rewards.probe import Probe, ProbeConfig
from rfft.rewards.rfnet import FeatureFusionModule, RFNet, RFNetConfig, adapt_stem
from rfft.rfnet.config import load_config

VOCABULARY = 64
INPUTS = ("image", "product", "depth", "saliency")


def small_config(**overrides: object) -> RFNetConfig:
    config = RFNetConfig.tiny(VOCABULARY, image_size=64, width=32, n2=1, **overrides)
    config.image_encoder = {
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }
    config.text_encoder |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    return config


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "image": torch.rand(2, 3, 48, 48),
        "product": torch.rand(2, 4, 48, 48),
        "depth": torch.rand(2, 1, 48, 48),
        "saliency": torch.rand(2, 1, 48, 48),
        "caption_ids": torch.randint(1, VOCABULARY, (2, 7)),
        "caption_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # Each token by itself: 5 * (2 * 0.5 * 3 * e_o) + e_o = 16 * e_o.
        (1, [[16.0, 32.0], [64.0, 0.0]]),
        # All of the 2x2 grid is within reach of each token: 4 * 2 * 0.5 = 4 and 3 * (1 + 2 + 4) = 21;
        # 5 * 4 * (4 * 21) + e_o = 1680 + e_o.
        (3, [[1681.0, 1682.0], [1684.0, 1680.0]]),
    ],
)
def test_feature_fusion_by_hand(kernel: int, expected: list[list[float]]) -> None:
    """Attention to one caption token returns it; all weights of the convolutions are 2, 3 and 5."""
    module = FeatureFusionModule(width=1, heads=1, dropout=0.0, kernel=kernel)
    with torch.no_grad():
        module.cross_attention.in_proj_weight.fill_(1)
        module.cross_attention.out_proj.weight.fill_(1)
        for conv, weight in ((module.conv_attended, 2), (module.conv_product, 3), (module.conv_out, 5)):
            conv.weight.fill_(weight)
            nn.init.zeros_(conv.bias)
    e_o, e_c = torch.tensor([[[1.0], [2.0], [4.0], [0.0]]]), torch.tensor([[[0.5], [9.0]]])
    e_f = module(e_o, e_c, torch.tensor([[False, True]]))  # the second caption token is padding
    torch.testing.assert_close(e_f, torch.tensor(expected).reshape(1, 4, 1))


def test_the_papers_convolutions_are_1x1_the_embedded_ones_3x3() -> None:
    with torch.device("meta"):
        paper = RFNet(RFNetConfig.paper()).fusion_modules[0]
    embedded = RFNet.from_pretrained("rf-tiny-rfnet").fusion_modules[0]
    for name in ("conv_attended", "conv_product", "conv_out"):
        assert getattr(paper, name).weight.shape == (384, 384, 1, 1)
        assert getattr(embedded, name).weight.shape == (128, 128, 3, 3)
    assert load_config("rfnet_paper").rfnet.ffm_kernel == 1


def test_five_logits_also_in_bfloat16(inputs: dict[str, Tensor]) -> None:
    model = RFNet(small_config()).eval()
    logits = model(**inputs)
    assert logits.shape == (2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**inputs)
    torch.testing.assert_close(mixed.float(), logits, rtol=0.1, atol=0.1)


def test_gradient_reaches_image_depth_and_saliency(inputs: dict[str, Tensor]) -> None:
    model = RFNet(small_config()).eval()
    for name in INPUTS:
        inputs[name].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs).float().logsumexp(dim=1).sum()
    loss.backward()
    for name in INPUTS:
        gradient = inputs[name].grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().sum() > 0, name
    assert all(p.grad is not None for name, p in model.named_parameters() if "word_embeddings" not in name)


def test_padding_of_the_caption_does_not_matter(inputs: dict[str, Tensor]) -> None:
    for model in (RFNet(small_config()).eval(), RFNet(small_config(drop=["o"])).eval()):
        logits = model(**inputs)
        changed = inputs | {
            "caption_ids": inputs["caption_ids"] * inputs["caption_mask"] + 1 - inputs["caption_mask"]
        }
        torch.testing.assert_close(model(**changed), logits)


@pytest.mark.parametrize(
    ("modality", "name"), [("o", "product"), ("g", "image"), ("d", "depth"), ("s", "saliency")]
)
def test_dropped_picture_leaves_no_trace(inputs: dict[str, Tensor], modality: str, name: str) -> None:
    model = RFNet(small_config(drop=[modality])).eval()
    counts: list[int] = []
    model.self_attention.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
    logits = model(**inputs)
    captions = 7 if modality == "o" else 0  # without I_o the caption has no other way in
    assert counts == [3 * 16 + captions]
    assert not [key for key in model.state_dict() if key.startswith(f"encoders.{modality}.")]
    torch.testing.assert_close(model(**inputs | {name: torch.full_like(inputs[name], torch.nan)}), logits)


def test_every_encoder_sees_where_the_product_stands(inputs: dict[str, Tensor]) -> None:
    """Its alpha alone moves the tokens of every picture; without I_o nobody hears of it."""
    moved = inputs["product"].clone()
    moved[:, 3:] = moved[:, 3:].flip(-1)
    for drop in ([], ["o"]):
        model = RFNet(small_config(drop=drop)).eval()
        tokens, _, _ = model.encode(**inputs)
        others, _, _ = model.encode(**inputs | {"product": moved})
        assert {m for m in tokens if not torch.allclose(tokens[m], others[m])} == set(() if drop else tokens)


def test_dropped_caption_leaves_no_trace(inputs: dict[str, Tensor]) -> None:
    model = RFNet(small_config(drop=["c"])).eval()
    assert not [key for key in model.state_dict() if "text" in key or "fusion_modules" in key]
    changed = inputs | {"caption_ids": torch.zeros_like(inputs["caption_ids"])}
    torch.testing.assert_close(model(**changed), model(**inputs))


def test_caption_matters_where_it_is_not_dropped(inputs: dict[str, Tensor]) -> None:
    changed = inputs | {"caption_ids": inputs["caption_ids"].flip(1)}
    for drop in ([], ["o"]):
        model = RFNet(small_config(drop=drop)).eval()
        assert not torch.allclose(model(**changed)[0], model(**inputs)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drop": ["x"]}, "unknown modality"),
        ({"drop": ["o", "g", "d", "s"]}, "at least one"),
        ({"width": 30}, "multiple of its 4 heads"),
        ({"image_size": 100}, "multiple of 16"),
        ({"ffm_kernel": 2}, "ffm_kernel 2 is not odd"),
    ],
)
def test_impossible_configs(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RFNetConfig.tiny(VOCABULARY, **values)


def test_paper_sized_network() -> None:
    config = RFNetConfig.paper()
    assert (
        RFNetConfig(**json.loads(json.dumps(vars(config)))) == config
    )  # the values can stand in a YAML file
    with torch.device("meta"):
        model = RFNet(config)
    resnet = sum(p.numel() for p in model.encoders["g"].resnet.parameters())
    assert resnet == 23_508_032 + 64 * 7 * 7  # ResNet-50 without its classifier; alpha is a fourth channel
    assert model.position.shape == (12 * 12, 384)


def test_published_encoders(tmp_path: Path) -> None:
    config = small_config()
    resnet = ResNetModel(ResNetConfig(**config.image_encoder))
    text = BertModel(BertConfig(**config.text_encoder))
    for name, encoder in (("resnet", resnet), ("bert", text)):
        encoder.config.save_pretrained(tmp_path / name)
        save_file(encoder.state_dict(), tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    model = RFNet(config)
    model.load_encoders(str(tmp_path / "resnet"), str(tmp_path / "bert"))
    layer = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(model.text_encoder.state_dict()[layer], text.state_dict()[layer])
    stem = "embedder.embedder.convolution.weight"
    torch.testing.assert_close(
        model.encoders["g"].resnet.state_dict()[stem][:, :3], resnet.state_dict()[stem]
    )
    other = RFNet(RFNetConfig.tiny(VOCABULARY))
    with pytest.raises(UserError, match="does not fit"):
        other.load_encoders(image=str(tmp_path / "resnet"))
    with pytest.raises(UserError, match="nowhere"):
        other.load_encoders(text=str(tmp_path / "nowhere"))


def test_stem_for_grey_and_colour_with_alpha() -> None:
    name = "embedder.embedder.convolution.weight"
    stem, x = torch.randn(2, 3, 3, 3), torch.rand(1, 1, 5, 5)
    conv = nn.functional.conv2d
    two, four = (adapt_stem({name: stem}, channels)[name] for channels in (2, 4))
    torch.testing.assert_close(conv(x.expand(1, 2, 5, 5), two), conv(x.expand(1, 3, 5, 5), stem))
    torch.testing.assert_close(conv(x.expand(1, 4, 5, 5), four), conv(x.expand(1, 3, 5, 5), stem))


def test_judge_reads_numbers_in_order(inputs: dict[str, Tensor]) -> None:
    judge = Judge(JudgeConfig(vocab_size=VOCABULARY, widths=[8, 8, 8, 8])).eval()
    image, product = inputs["image"][:1], inputs["product"][:1]
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    a, b, padded = (torch.tensor([ids]) for ids in ([5, 1, 8, 0, 0], [5, 1, 0, 8, 0], [5, 1, 8, 0, 9]))
    logits = judge(image, product, a, mask)
    assert logits.shape == (1, 5)
    assert not torch.allclose(judge(image, product, b, mask), logits)
    torch.testing.assert_close(judge(image, product, padded, mask), logits)


def test_probe_has_a_head_per_attribute(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    classes = {"surface": ["wood", "sand"], "prop": ["none", "cactus", "lamp"]}
    probe = Probe(ProbeConfig(classes, widths=[8, 8, 8, 8])).eval()
    logits = probe(inputs["image"], inputs["product"])
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"surface": (2, 2), "prop": (2, 3)}
    probe.save_pretrained(tmp_path)
    assert Probe.from_pretrained(tmp_path).config.classes == classes


@pytest.mark.parametrize("size", [(64, 64), (50, 75)])
def test_map_net_keeps_the_size(size: tuple[int, int]) -> None:
    model = MapNet(MapNetConfig(widths=[4, 8, 8])).eval()
    image = torch.rand(2, 3, *size, requires_grad=True)
    depth = model(image)
    assert depth.shape == (2, 1, *size)
    assert depth.min() >= 0
    assert depth.max() <= 1
    depth.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_product_on_grey() -> None:
    pixels = torch.tensor([[1.0, 0.0, 0.2, 0.0], [1.0, 0.0, 0.2, 1.0]]).T.reshape(1, 4, 1, 2)
    flat = composite_on_grey(pixels)[0, :, 0].T.tolist()
    assert flat == [pytest.approx([0.5, 0.5, 0.5, 0.0]), pytest.approx([1.0, 0.0, 0.2, 1.0])]


def test_resize_keeps_constant_pictures_and_type() -> None:
    picture = torch.full((1, 3, 10, 20), 0.25, dtype=torch.bfloat16)
    for size in (4, 16):
        torch.testing.assert_close(resize(picture, size), picture.new_full((1, 3, size, size), 0.25))


def test_save_and_load(inputs: dict[str, Tensor], tmp_path: Path) -> None:
    model = RFNet(small_config(drop=["s"])).eval()
    logits = model(**inputs)
    model.save_pretrained(tmp_path / "full")
    copy.deepcopy(model).half().save_pretrained(tmp_path / "half")
    torch.testing.assert_close(RFNet.from_pretrained(tmp_path / "full")(**inputs), logits, rtol=0, atol=0)
    half = RFNet.from_pretrained(tmp_path / "half")
    assert half.config == model.config
    assert not half.training
    assert {v.dtype for v in half.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(half(**inputs), logits, rtol=0.02, atol=0.02)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_folders_that_do_not_load(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such network"):
        RFNet.from_pretrained(tmp_path / "nowhere")
    RFNet(small_config()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds RFNet, not Judge"):
        Judge.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"width": 64}, "does not fit RFNet"),
        ({"wdth": 64}, "wdth"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            RFNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{\n"width": }')
    with pytest.raises(UserError, match="line 2: broken JSON"):
        RFNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        RFNet.from_pretrained(tmp_path)
