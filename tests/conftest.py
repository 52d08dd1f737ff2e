"""A pipeline of the shape of SD 1.5 + ControlNet, tiny, of random weights: enough for all that is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from rfft.diffusion.compositing import latent_mask
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle
from rfft.rewards.availability import Availability
from rfft.types import Batch, Reward, Size, sides
from tests import shapes

PIXELS = 32
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "conv1", "proj_in"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked full take gigabytes: they have to be asked for."""
    if "full" not in config.getoption("-m"):
        items[:] = [item for item in items if "full" not in item.keywords]


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Encoded products are kept among the tests, and not beside those of whoever runs them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RFFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its state for the whole process: none of an earlier test's, none for a later one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a StableDiffusionControlNetInpaintPipeline: 32 px, VAE factor 4, the schedule of SD 1.5."""
    folder = tmp_path_factory.mktemp("pipeline")
    shapes.pipeline("sd15").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights with the tokenizer of the tiny pipeline."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder / "tokenizer")
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text = shared | special | sizes
    vision = shared | {"image_size": 32, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(pipeline_folder: Path) -> Bundle:
    return load_bundle(pipeline_folder)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """make_batch(bundle, count, size): products with prompts, random but always the same."""
    return _make_batch


@pytest.fixture
def reward() -> Iterator[Reward]:
    """A differentiable stand-in for RFNet: F_AC of a small random network's verdict."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 64, 5))
    network.requires_grad_(False)
    yield Availability(Verdicts(network))


class Verdicts(nn.Module):
    """Logits [B,5] of a network that sees nothing but the picture."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, batch: Batch) -> Tensor:
        return self.network(image)


@pytest.fixture
def make_trained(pipeline_folder: Path) -> Callable[..., Bundle]:
    """make_trained(*modes, shift=0.05): a bundle to train, moved off the reference by shift."""

    def make(*modes: str, shift: float = 0.05) -> Bundle:
        bundle = load_bundle(pipeline_folder)
        with torch.random.fork_rng():
            torch.manual_seed(2)  # LoRA's A is drawn
            bundle.train(list(modes), rank=2, alpha=4, target_modules=TARGETS)
        generator = torch.Generator().manual_seed(2)
        for parameter in bundle.trainable().values():  # LoRA itself starts at zero: B = 0
            parameter.data += shift * torch.randn(parameter.shape, generator=generator)
        return bundle

    return make


def draw_products(count: int, generator: torch.Generator, size: Size = PIXELS) -> tuple[Tensor, Tensor]:
    """RGBA products [B,4,H,W] and their edges [B,3,H,W]."""
    product = torch.rand(count, 4, *sides(size), generator=generator)
    product[:, 3] = 0
    product[:, 3, 12:28, 8:20] = 1
    edges = (torch.rand(count, 1, *sides(size), generator=generator) > 0.8).float()
    return product, edges.repeat(1, 3, 1, 1)


def _make_batch(bundle: Bundle, count: int = 2, size: Size = PIXELS) -> Batch:
    generator = torch.Generator().manual_seed(3)
    product, edges = draw_products(count, generator, size)
    h, w = (side // bundle.latent_factor for side in sides(size))
    z, _ = bundle.encode_prompts(["a bookcase in a park", "soft light"][:count], size)
    null, _ = bundle.encode_prompts([""] * count, size)
    return Batch(
        z=z,
        null=null,
        edges=bundle.encode_control(edges, product),
        product=product,
        x_o=bundle.encode_image(product[:, :3] * product[:, 3:]),
        mask=latent_mask(product, (h, w)),
        noise=torch.randn(count, bundle.family.latent_channels, h, w, generator=generator),
        sample=torch.arange(count),
        captions=["bookcase", "vase"][:count],
        prompts=["a bookcase in a park", "soft light"][:count],
    )
