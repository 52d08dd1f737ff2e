"""rf-tiny-flow before it is trained: its loss, its noise levels, its texts, its first word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import CLIPTokenizer

from rfft.models.families.sd3 import StableDiffusion3
from rfft.models.pretrained import ASSETS
from rfft.training.pretrain import base, flow
from rfft.types import NoiseLevel

MILLION = 1_000_000


class Data:
    """What of AdWorld's scenes a pipeline is made of."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "rf-tiny/tokenizer")
        self.vae = base.AutoencoderKL.from_pretrained(ASSETS / "rf-tiny/vae")


@pytest.fixture(scope="module")
def nets() -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return flow.build_modules(Data().tokenizer).eval()


@pytest.fixture(scope="module")
def family(nets: nn.ModuleDict) -> StableDiffusion3:
    return StableDiffusion3(flow._pipeline(nets, Data()))


def test_the_velocity_is_noise_less_the_picture() -> None:
    x0, noise = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 1.0, 0.5])  # u = 2, 3, 0
    assert flow.velocity_loss(torch.tensor([2.0, 3.0, 0.0]), x0, noise) == 0
    assert flow.velocity_loss(torch.tensor([1.0, 5.0, 0.0]), x0, noise).item() == pytest.approx(5 / 3)


def test_noise_levels_are_logit_normal() -> None:
    normal = np.random.default_rng(7).normal(size=3)
    drawn = flow.draw_sigma(np.random.default_rng(7), 3)
    assert drawn.shape == (3, 1, 1, 1)
    assert drawn.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-n)) for n in normal])
    many = flow.draw_sigma(np.random.default_rng(0), 20_000)
    # Quartiles of N(0, 1) are at 0 and 0.6745 to either side.
    quartiles = many.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert quartiles.tolist() == pytest.approx([0.3375, 0.5, 0.6625], abs=0.01)


def test_it_has_the_size_that_was_asked_for(nets: nn.ModuleDict) -> None:
    assert 5 * MILLION < sum(p.numel() for p in nets.parameters()) < 8 * MILLION


def test_texts_are_encoded_as_the_pipeline_does(nets: nn.ModuleDict, family: StableDiffusion3) -> None:
    """The trained features are those that are painted with: none of T5."""
    prompts = ["a product of about 40 cm on oak planks", ""]
    ours = flow.encode_text(nets, base.tokenize(family.pipe.tokenizer, prompts))
    theirs, cut = family.encode_prompts(prompts, 64)
    assert_close((ours.hidden, ours.added), (theirs.hidden, theirs.added))
    assert ours.hidden.shape == (2, base.LENGTH, 2 * flow.TEXT_WIDTH) and cut == ["", ""]
    assert family.blank_conditioning(2).hidden.shape == ours.hidden.shape
    assert "max_sequence_length=0" in family.hint


def test_it_says_nothing_at_first_and_all_of_it_can_learn(
    nets: nn.ModuleDict, family: StableDiffusion3
) -> None:
    """What is zero at first wakes up within a few steps."""
    generator = torch.Generator().manual_seed(0)
    x, edges, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    ids = base.tokenize(family.pipe.tokenizer, ["a vase on sand", "a lamp"])

    def velocity() -> Tensor:
        level = NoiseLevel(1000 * sigma.flatten(), 1 - sigma, sigma)
        pair = family.denoiser(x, level, flow.encode_text(nets, ids), edges)
        return pair[1] - pair[0]

    assert_close(velocity(), torch.zeros_like(x))
    optimizer = torch.optim.SGD(nets.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        flow.velocity_loss(velocity(), x, noise).backward()
        optimizer.step()
    still = [name for name, p in nets.named_parameters() if p.grad is None or not p.grad.any()]
    # The last block makes no text features, and asks for none.
    assert all("attn.add_q_proj" in name or "attn.norm_added_q" in name for name in still)


def test_its_edges_are_a_latent(family: StableDiffusion3) -> None:
    canny = torch.zeros(3, 64, 64, dtype=torch.uint8)
    canny[1, 10:20, 30] = 1
    control = flow._control(family, canny)
    assert control.shape == (3, 4, 16, 16) and control.dtype == torch.float16
    assert torch.equal(control[0], control[2]) and not torch.equal(control[0], control[1])
