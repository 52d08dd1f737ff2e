"""Rewards beside RFNet: a toy of one's own, PickScore and the aesthetic head on a CLIP of random weights."""

from __future__ import annotations

import re
import shutil
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPImageProcessor, CLIPModel

from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.objectives.base import ObjectiveSettings
from rfft.objectives.regularizers import ConsistentCondition
from rfft.objectives.surrogate import Surrogate
from rfft.rewards.preference import Aesthetic, PickScore, TextMatch, clip_pixels
from rfft.rewards.weighted import REWARDS, WeightedRewards
from rfft.types import Batch, Reward
from rfft.utils.registry import construct
from tests.toys import Darkness

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def batch_of(captions: list[str], prompts: list[str]) -> Batch:
    """A batch of nothing but texts."""
    empty = torch.zeros(len(captions))
    return Batch(*[empty] * 8, captions=captions, prompts=prompts)  # type: ignore[arg-type, misc]


BATCH = batch_of(["a", "b"], ["c", "d"])


def load(use: str, options: dict[str, object]) -> Reward:
    found: Reward = construct("reward.terms", use, options, REWARDS)
    return found


def test_weights_and_texts() -> None:
    image = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 1.0)])
    rewards = WeightedRewards([("dark/", 2.0, Darkness()), ("bright/", 1.0, Darkness(1.0))])
    loss, scalars = rewards(image, batch_of(["zzz", "yy"], ["22", "1"]))
    assert_close(loss, torch.tensor([1.0, 2.0]))  # 2 x 0 + 1, and 2 x 1 + 0
    assert scalars["dark/brightness"] == 0.5 and scalars["bright/letters"] == 4.0


def test_scalars_are_where_the_pictures_are() -> None:
    """Whatever a reward makes them of: the step adds them up with its own."""
    rewards = WeightedRewards([("a/", 1.0, Darkness())])
    _, scalars = rewards(torch.zeros(1, 3, 4, 4, device="meta"), batch_of(["x"], [""]))
    assert scalars.keys() == {"a/brightness", "a/letters"}
    assert all(value.is_meta for value in scalars.values())


def test_pickscore_is_clips_own(clip: Path) -> None:
    reward, prompts = PickScore(str(clip)), ["a park", "a long wall in grey light"]
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, scalars = reward(image, batch_of(["", ""], prompts))
    model = CLIPModel.from_pretrained(clip)
    tokens = reward.tokenizer(prompts, padding=True, return_tensors="pt")
    theirs = model(pixel_values=(image.detach() - CLIP_MEAN) / CLIP_STD, **tokens).logits_per_image.diagonal()
    assert_close(-loss, theirs)
    assert_close(scalars["score"], theirs.mean())
    loss.sum().backward()
    assert image.grad is not None and image.grad.any()


@pytest.mark.parametrize("shape", [(32, 32), (48, 65), (101, 40), (20, 27), (33, 32)])
def test_pictures_are_prepared_as_clips_processor_does(shape: tuple[int, int]) -> None:
    """Bicubic to the shorter side, then the middle square; Pillow rounds to 8 bits on the way."""
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    rng = np.random.default_rng(0)
    picture = rng.integers(64, 192, (*shape, 3), np.uint8)  # Pillow clamps between its passes
    theirs = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
    image = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 255).requires_grad_()
    ours = clip_pixels(image, 32)
    assert_close(ours, theirs, rtol=0, atol=1.01 / 255 / 0.26)
    ours.square().sum().backward()
    assert image.grad is not None and image.grad[..., shape[0] // 2, shape[1] // 2].all()


def test_the_clip_score_is_a_cosine_without_clips_scale(clip: Path) -> None:
    """100 x cosine where that is positive, 0 where picture and prompt point away from each other."""
    scorer, words = TextMatch(str(clip)), ["a park", "a long wall", "grey light", "tulips", "a lamp"]
    image = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        model.logit_scale.fill_(0.0)
        tokens = scorer.tokenizer(words, padding=True, return_tensors="pt")
        cosines = model(pixel_values=(image - CLIP_MEAN) / CLIP_STD, **tokens).logits_per_image.diagonal()
        assert_close(scorer.cosine(image, words), cosines)
        assert_close(scorer.score(image, words), 100 * cosines.clamp(min=0))
        scorer.clip.visual_projection.weight.neg_()
        assert_close(scorer.score(image, words), 100 * (-cosines).clamp(min=0))


def test_a_clip_without_its_tokenizer(clip: Path, tmp_path: Path) -> None:
    """Transformers would make one up, to which all prompts are alike."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip / name, tmp_path)
    with pytest.raises(UserError, match=f"no tokenizer in {tmp_path}"):
        TextMatch(str(tmp_path))


def test_the_template_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/rewards.md: its own class, as a module beside the config that names it."""
    docs = Path(__file__).parents[2] / "docs/rewards.md"
    (code,) = re.findall(r"```python\n(class Darkness.*?)```", docs.read_text(), re.DOTALL)
    module = types.ModuleType("my_rewards")
    exec(code, vars(module))  # noqa: S102
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    image = torch.full((2, 3, 4, 4), 0.5).requires_grad_()
    loss, scalars = load("my_rewards:Darkness", {"wanted": 0.3})(image, BATCH)
    assert_close(loss, torch.tensor([0.04, 0.04]))
    assert scalars["brightness"] == 0.5
    loss.sum().backward()
    assert image.grad is not None and image.grad.any()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_aesthetic_head_has_the_published_form(clip: Path, tmp_path: Path, suffix: str) -> None:
    sizes = [12, 1024, 128, 64, 16, 1]
    linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    parts = [linear[0], nn.Dropout(), linear[1], nn.Dropout(), linear[2], nn.Dropout(), *linear[3:]]
    published = nn.Sequential(*parts).eval()
    weights = {f"layers.{name}": tensor for name, tensor in published.state_dict().items()}
    file = tmp_path / f"head{suffix}"
    torch.save(weights, file) if suffix == ".pth" else save_file(weights, file)
    reward = Aesthetic(str(file), str(clip)).eval()
    image = torch.rand(2, 3, 32, 32).requires_grad_()
    loss, _ = reward(image, BATCH)
    model = CLIPModel.from_pretrained(clip)
    pooled = model.vision_model((image - CLIP_MEAN) / CLIP_STD).pooler_output
    features = model.visual_projection(pooled)
    assert_close(-loss, published(features / features.norm(dim=-1, keepdim=True))[:, 0])
    loss.sum().backward()
    assert image.grad is not None and image.grad.any()


def test_terms_are_weighted_and_added(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], reward: Reward
) -> None:
    bundle = make_trained("denoiser_lora")
    batch, losses = make_batch(bundle), {}
    for weight in (0.0, 0.5):
        terms = WeightedRewards([("", 1.0, reward), ("dark/", weight, Darkness())])
        objective = Surrogate(ObjectiveSettings(3.0, ConsistentCondition(), 0.1, decode_batch=1))
        output = objective.step(bundle, terms, batch, bundle.schedule(8), [6], Tensor.backward)
        grad = torch.cat([p.grad.flatten() for p in bundle.trainable().values() if p.grad is not None])
        bundle.unwrapped.zero_grad()
        losses[weight] = (output, grad)
    (without, plain), (with_it, pushed) = losses[0.0], losses[0.5]
    dark = output.images.mean((1, 2, 3)).square().mean()
    assert_close(with_it.loss - without.loss, 0.5 * dark)
    assert_close(with_it.scalars["f_ac"] + 0.5 * dark + 0.1 * with_it.reg, with_it.loss)
    assert_close(with_it.scalars["dark/brightness"], output.images.mean())
    assert not torch.allclose(plain, pushed)


@pytest.mark.parametrize(
    ("use", "options", "message"),
    [
        (
            "prettiness",
            {},
            "not known; give pickscore, aesthetic, image_reward, http or a path package.module:Name",
        ),
        ("no.such.module:Class", {}, "cannot be used: No module named"),
        ("tests.toys:Missing", {}, "cannot be used"),
        (":Darkness", {}, "':Darkness' is not known"),
        (".toys:Darkness", {}, "'.toys:Darkness' is not known"),
        ("tests.toys:Darkness", {"colour": 1}, "its options do not fit"),
        ("pickscore", {"model": "nowhere"}, "CLIP model nowhere"),
    ],
)
def test_mistakes(use: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(use, options)
    assert isinstance(load("tests.toys:Darkness", {"wanted": 1}), Darkness)
