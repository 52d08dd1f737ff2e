"""ImageReward against BLIP's forward pass written out anew, on a tiny one with random weights."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from rfft.errors import UserError
from rfft.rewards.image_reward import ImageReward, load_image_reward, pixels

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "vase", "in", "park", ","]
PROMPTS, IDS = ["A vase in a park", "park"], [[2, 5, 6, 7, 5, 8, 3], [2, 8, 3]]
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
# ViT width, depth, patch, picture; BERT width, depth, rows, places
FULL = (1024, 24, 16, 224, 768, 12, 30524, 512)
TINY = (128, 2, 8, 32, 64, 2, len(WORDS) + 2, 40)


def shapes(vit: int, blocks: int, patch: int, side: int, *text: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of ImageReward.pt by its name in the authors' code."""
    bert, layers, rows, places = text
    vision = {"cls_token": (1, 1, vit), "pos_embed": (1, 1 + (side // patch) ** 2, vit)}
    vision |= {"patch_embed.proj.weight": (vit, 3, patch, patch), "patch_embed.proj.bias": (vit,)}
    vision |= norm("norm", vit)
    for i in range(blocks):
        vision |= norm(f"blocks.{i}.norm1", vit) | norm(f"blocks.{i}.norm2", vit)
        for name, c_in, c_out in (
            ("attn.qkv", 1, 3),
            ("attn.proj", 1, 1),
            ("mlp.fc1", 1, 4),
            ("mlp.fc2", 4, 1),
        ):
            vision |= linear(f"blocks.{i}.{name}", c_in * vit, c_out * vit)
    words = {"word_embeddings.weight": (rows, bert), "position_embeddings.weight": (places, bert)}
    words |= {"position_ids": (1, places)} | norm("LayerNorm", bert)
    encoder: dict[str, tuple[int, ...]] = {}
    for i in range(layers):
        for kind, seen in (("attention", bert), ("crossattention", vit)):
            for name, width in (("query", bert), ("key", seen), ("value", seen)):
                encoder |= linear(f"layer.{i}.{kind}.self.{name}", width, bert)
            encoder |= linear(f"layer.{i}.{kind}.output.dense", bert, bert)
            encoder |= norm(f"layer.{i}.{kind}.output.LayerNorm", bert)
        encoder |= linear(f"layer.{i}.intermediate.dense", bert, 4 * bert)
        encoder |= linear(f"layer.{i}.output.dense", 4 * bert, bert)
        encoder |= norm(f"layer.{i}.output.LayerNorm", bert)
    head: dict[str, tuple[int, ...]] = {}
    for place, (c_in, c_out) in zip((0, 2, 4, 6, 7), pairwise((bert, 1024, 128, 64, 16, 1)), strict=True):
        head |= linear(f"mlp.layers.{place}", c_in, c_out)
    return {
        **{f"blip.visual_encoder.{name}": shape for name, shape in vision.items()},
        **{f"blip.text_encoder.embeddings.{name}": shape for name, shape in words.items()},
        **{f"blip.text_encoder.encoder.{name}": shape for name, shape in encoder.items()},
        **linear("blip.vision_proj", vit, 256),
        **linear("blip.text_proj", bert, 256),
        **head,
    }


def linear(name: str, c_in: int, c_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (c_out, c_in), f"{name}.bias": (c_out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def random_weights() -> dict[str, Tensor]:
    """Large enough that pictures and words tell in the score."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in shapes(*TINY).items():
        scale = 3 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5
        found[name] = scale * torch.randn(shape, generator=generator)
    found["blip.text_encoder.embeddings.position_ids"] = torch.arange(TINY[-1])[None]
    return found


def written_out(weights: dict[str, Tensor], image: Tensor, ids: list[int]) -> Tensor:
    """The score of one picture [3,32,32], from the published tensors; `ids` without padding."""

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def normed(name: str, x: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [part.split(64, dim=-1) for part in (q, k, v)]
        return torch.cat([(a @ b.T / 8).softmax(-1) @ c for a, b, c in zip(*heads, strict=True)], dim=-1)

    v, t = "blip.visual_encoder", "blip.text_encoder"
    patch = F.conv2d(
        ((image - CLIP_MEAN) / CLIP_STD)[None], weights[f"{v}.patch_embed.proj.weight"], stride=TINY[2]
    )[0]
    x = patch.flatten(1).T + weights[f"{v}.patch_embed.proj.bias"]
    x = torch.cat([weights[f"{v}.cls_token"][0], x]) + weights[f"{v}.pos_embed"][0]
    for block in (f"{v}.blocks.{i}" for i in range(TINY[1])):
        q, k, value = dense(f"{block}.attn.qkv", normed(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + dense(f"{block}.attn.proj", attended(q, k, value))
        x = x + dense(
            f"{block}.mlp.fc2", F.gelu(dense(f"{block}.mlp.fc1", normed(f"{block}.norm2", x, 1e-6)))
        )
    seen = normed(f"{v}.norm", x, 1e-6)

    y = weights[f"{t}.embeddings.word_embeddings.weight"][ids]
    y = y + weights[f"{t}.embeddings.position_embeddings.weight"][: len(ids)]
    y = normed(f"{t}.embeddings.LayerNorm", y, 1e-12)
    for layer in (f"{t}.encoder.layer.{i}" for i in range(TINY[5])):
        for kind, source in (("attention", None), ("crossattention", seen)):
            at = f"{layer}.{kind}"
            other = y if source is None else source
            q, k, value = (
                dense(f"{at}.self.query", y),
                *(dense(f"{at}.self.{n}", other) for n in ("key", "value")),
            )
            y = normed(
                f"{at}.output.LayerNorm", y + dense(f"{at}.output.dense", attended(q, k, value)), 1e-12
            )
        wide = F.gelu(dense(f"{layer}.intermediate.dense", y))
        y = normed(f"{layer}.output.LayerNorm", y + dense(f"{layer}.output.dense", wide), 1e-12)
    score = y[0]
    for place in (0, 2, 4, 6, 7):
        score = dense(f"mlp.layers.{place}", score)
    return (score[0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save(random_weights(), tmp_path / "ImageReward.pt")
    return tmp_path


def test_the_score_is_that_of_blip_written_out(folder: Path) -> None:
    reward, weights = load_image_reward(folder=str(folder)), random_weights()
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, scalars = reward(image, SimpleNamespace(prompts=PROMPTS))
    expected = torch.stack([written_out(weights, *pair) for pair in zip(image, IDS, strict=True)])
    assert_close(-loss, expected, rtol=1e-4, atol=1e-4)
    assert_close(scalars["score"], -loss.mean())
    assert abs(loss[0] - loss[1]) > 1
    (grad,) = torch.autograd.grad(-loss.sum(), image)
    (theirs,) = torch.autograd.grad(expected.sum(), image)
    assert theirs.abs().max() > 1e-3
    assert_close(grad, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_prompts_of_more_than_35_tokens_are_cut(folder: Path) -> None:
    reward = load_image_reward(str(folder))
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))[:1].expand(3, -1, -1, -1)
    score = reward.score(image, ["park " * 33, "park " * 33 + "a vase", "park " * 32 + "vase vase"])
    assert_close(score[0], score[1], rtol=0, atol=5e-4)
    assert abs(score[0] - score[2]) > 2e-3


def test_every_published_tensor_has_its_place_at_full_size() -> None:
    with torch.device("meta"):
        published = {name: torch.empty(shape) for name, shape in shapes(*FULL).items()}
        model = ImageReward(published, tokenizer=None)  # refuses what is missing or left over
    assert model.vision.config.num_attention_heads == 16 and model.text.config.num_attention_heads == 12
    assert model.vision.config.image_size == 224
    assert model.vision.post_layernorm.eps == 1e-6 and model.text.embeddings.LayerNorm.eps == 1e-12
    unused = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
    count = sum(tensor.numel() for name, tensor in published.items() if not name.startswith(unused))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(48, 48), (20, 20), (64, 40), (40, 101)])
def test_pictures_are_prepared_as_pillow_does(shape: tuple[int, int]) -> None:
    """The shorter side to 32 by Pillow's bicubic filter, then the middle square."""
    rng = np.random.default_rng(0)
    picture = rng.integers(64, 192, (*shape, 3), np.uint8)  # Pillow clamps between its passes
    height, width = (32 * side // min(shape) for side in shape)
    resized = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - 32) / 2), round((height - 32) / 2)
    square = np.array(resized.crop((left, top, left + 32, top + 32)))
    expected = (torch.from_numpy(square).permute(2, 0, 1) / 255 - CLIP_MEAN) / CLIP_STD
    found = pixels(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255, 32)[0]
    assert_close(found, expected, rtol=0, atol=1.01 / 255 / 0.26)  # Pillow rounds to 8 bits


def test_safetensors_of_half_precision(folder: Path) -> None:
    image = torch.rand(1, 3, 32, 32)
    score = load_image_reward(str(folder)).score(image, ["park"])
    (folder / "ImageReward.pt").unlink()
    halves = {name: tensor.half() for name, tensor in random_weights().items()}
    save_file(halves, folder / "ImageReward.safetensors")
    assert_close(load_image_reward(str(folder)).score(image, ["park"]), score, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("folder", "no folder that holds ImageReward.pt or ImageReward.safetensors"),
        ("tokenizer", "a tokenizer of 5 words for weights of 12; put the vocab.txt"),
        ("tensor", "does not hold ImageReward's weights .RuntimeError: Missing key"),
        ("other", "does not hold ImageReward's weights .KeyError: 'vision.embeddings"),
        ("garbage", "no weights of ImageReward can be read from it"),
    ],
)
def test_mistakes(folder: Path, damage: str, message: str) -> None:
    file, weights = folder / "ImageReward.pt", random_weights()
    if damage == "folder":
        file.unlink()
    elif damage == "tokenizer":
        (folder / "vocab.txt").unlink()
    elif damage == "tensor":
        del weights["blip.text_encoder.encoder.layer.1.output.dense.bias"]
        torch.save(weights, file)
    elif damage == "other":
        torch.save({"weight": torch.zeros(1)}, file)
    else:
        file.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=message) as error:
        load_image_reward(folder=str(folder))
    assert "\n" not in str(error.value)
