"""Flow bases: stock rollouts and prompts, gradients, a step in each mode, weights loaded back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    FluxControlNetPipeline,
    QwenImageControlNetInpaintPipeline,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3InpaintPipeline,
)
from torch import Tensor
from torch.testing import assert_close

from rfft.config.load import config_from
from rfft.diffusion.sampling import advance, rollout
from rfft.generation.export import export_bundle
from rfft.generation.model_card import usage
from rfft.models.bundle import Bundle
from rfft.models.load import load_bundle, load_skeleton
from rfft.objectives.base import ObjectiveSettings, predict
from rfft.objectives.regularizers import ConsistentCondition
from rfft.objectives.surrogate import Surrogate
from rfft.types import Batch, Reward, StepOutput
from tests import bases
from tests.conftest import draw_products
from tests.stock_bases import inpainting, sd3_arguments, stock_latent

MakeBatch = Callable[..., Batch]
MODES = ["denoiser_lora", "controlnet_lora", "controlnet"]
TARGETS = [
    "to_q",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "to_add_out",
    "ff.net.2",
    "ff_context.net.2",
    "conv1",
    "img_mlp.net.2",
    "txt_mlp.net.2",
]
ATTENTION = ["to_q", "to_v", "to_out.0", "add_q_proj"]
ATOL = 1e-4
CANNY = ["sd3", "sd35_large", "kolors", "flux", "flux_union", "flux_xlabs", "qwen_image"]
BASES = ["sd3", "kolors", "flux", "qwen_image"]
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in CANNY if name not in BASES]
ALL = [*CANNY, "sd3_inpaint", "qwen_image_inpaint"]
FORMATS = [
    ("diffusers", ["denoiser_lora"]),
    ("diffusers", ["controlnet_lora"]),
    ("kohya", ["denoiser_lora"]),
    ("peft", ["denoiser_lora", "controlnet_lora"]),
    ("merged", ["denoiser_lora", "controlnet"]),
]
# Whose kohya names diffusers reads back.
READ_BACK = {"kolors", "flux", "qwen_image"}
# Features of texts that are zero for this ControlNet.
ZERO = {"controlnet.time_text_embed.text_embedder.linear_1.weight"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in ALL:
        made[name] = tmp_path_factory.mktemp(name)
        bases.save(name, made[name])
    return made


def moved(folder: Path, *modes: str, targets: list[str] = TARGETS) -> Bundle:
    """A bundle to train, moved off its reference."""
    bundle = load_bundle(folder)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        bundle.train(list(modes), rank=2, alpha=4, target_modules=targets)
        for parameter in bundle.trainable().values():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return bundle


@pytest.fixture
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer tokens than the bases read, which takes less time."""
    for family, tokens in (("sd3", 48), ("flux", 48), ("qwen_image", 320), ("kolors", 64)):
        monkeypatch.setattr(f"rfft.models.families.{family}.TOKENS", tokens)


@pytest.fixture(autouse=True)
def without_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipelines draw latents of pictures from the VAE's posterior: the mean, as RFFT takes it."""
    posterior = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution"
    monkeypatch.setattr(f"{posterior}.sample", lambda self, generator=None: self.mode())


def control_of(name: str) -> Tensor:
    """The edges of make_batch's products as the base's ControlNet wants them."""
    _, edges = draw_products(2, torch.Generator().manual_seed(3))
    if name == "kolors":
        return edges
    return 255 * edges * 0.5 + 0.5 if name == "sd35_large" else 2 * edges - 1


def scale_of(name: str) -> float:
    """Guidance by a second branch, which FLUX has none of."""
    return 1.0 if name.startswith("flux") else 4.0


def stock(name: str) -> Any:
    """diffusers' pipeline of fresh networks."""
    return inpainting(bases.pipeline(name), bases.controlnet(name))


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("name", CANNY)
def test_rollout_is_the_pipelines(folders: dict[str, Path], make_batch: MakeBatch, name: str) -> None:
    bundle = load_bundle(folders[name])
    batch = make_batch(bundle)
    scale = scale_of(name)
    ours = rollout(bundle.denoiser, batch, bundle.schedule(8, 32), scale)
    theirs = stock_latent(stock(name), batch, control_of(name), 8, scale)
    assert_close(ours, theirs, rtol=0, atol=ATOL)
    without = replace(batch, edges=-batch.edges)
    assert not torch.allclose(ours, rollout(bundle.denoiser, without, bundle.schedule(8, 32), scale))


def test_flux_may_be_guided_by_a_second_branch(folders: dict[str, Path], make_batch: MakeBatch) -> None:
    bundle = load_bundle(folders["flux"])
    batch = make_batch(bundle)
    ours = rollout(bundle.denoiser, batch, bundle.schedule(8, 32), 4.0)
    pipe = FluxControlNetPipeline(**bases.pipeline("flux").components)
    assert_close(ours, stock_latent(pipe, batch, control_of("flux"), 8, 4.0), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd3_inpaint", StableDiffusion3ControlNetInpaintingPipeline),
        ("qwen_image_inpaint", QwenImageControlNetInpaintPipeline),
    ],
)
def test_an_inpainting_controlnet_sees_the_product(
    folders: dict[str, Path], make_batch: MakeBatch, name: str, kind: Any
) -> None:
    """Without latent inpainting, so that its own input alone tells of the product."""
    bundle = load_bundle(folders[name])
    batch = make_batch(bundle)
    batch = replace(batch, mask=torch.zeros_like(batch.mask))
    ours = rollout(bundle.denoiser, batch, bundle.schedule(8, 32), guidance_scale=4.0)
    pipe = kind(**bases.pipeline(name).components)
    control, mask = 2 * batch.product[:, :3] - 1, 1 - batch.product[:, 3:]
    theirs = stock_latent(pipe, batch, control, 8, 4.0, control_mask=mask, height=32, width=32)
    assert_close(ours, theirs, rtol=0, atol=ATOL)


def test_latent_inpainting_is_the_pipelines(folders: dict[str, Path], make_batch: MakeBatch) -> None:
    """diffusers' own pipeline for it knows no ControlNet: one that says nothing."""
    bundle = load_bundle(folders["sd3"])
    batch = make_batch(bundle)
    for block in bundle.pipe.controlnet.controlnet_blocks:
        block.requires_grad_(False).weight.zero_()
        block.bias.zero_()
    ours = rollout(bundle.denoiser, batch, bundle.schedule(8, 32), guidance_scale=4.0)
    parts = bases.pipeline("sd3").components
    del parts["controlnet"]
    pipe = StableDiffusion3InpaintPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        **sd3_arguments(batch),
        image=batch.product[:, :3] * batch.product[:, 3:],
        mask_image=F.interpolate(1 - batch.mask, (32, 32)),
        height=32,
        width=32,
        num_inference_steps=8,
        guidance_scale=4.0,
        strength=1.0,
        output_type="latent",
    ).images
    assert_close(ours, theirs, rtol=0, atol=ATOL)


def test_prompts_are_the_pipelines(folders: dict[str, Path]) -> None:
    bundle, pipe = load_bundle(folders["sd3"]), bases.pipeline("sd3")
    said, cut = bundle.encode_prompts(["a park", "light " * 100], 32)
    theirs = pipe.encode_prompt(
        ["a park", "light " * 100], None, None, device="cpu", do_classifier_free_guidance=False
    )
    assert_close(said.hidden, theirs[0])
    assert_close(said.added["pooled"], theirs[2])
    assert cut[0] == "" and cut[1].strip().endswith("light") and len(cut[1]) > 300  # T5 reads 256 tokens


def test_kolors_reads_chinese(folders: dict[str, Path]) -> None:
    bundle, pipe = load_bundle(folders["kolors"]), bases.pipeline("kolors")
    prompts = ["公园里的书架", "木桌上的花瓶" * 60, ""]
    said, cut = bundle.encode_prompts(prompts, 32)
    theirs = pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)
    assert_close(said.hidden, theirs[0])
    assert_close(said.added["text_embeds"], theirs[2])
    assert said.added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 3
    assert cut[0] == cut[2] == "" and cut[1].endswith("木桌上的花瓶")  # it reads 256 tokens


def test_qwen_image_reads_chinese(folders: dict[str, Path]) -> None:
    """Features are padded to one length; the pipeline's own end with the longest prompt of a call."""
    bundle, pipe = load_bundle(folders["qwen_image"]), bases.pipeline("qwen_image")
    prompts = ["公园里的书架", "a park", ""]
    said, cut = bundle.encode_prompts(prompts, 32)
    theirs, mask = pipe.encode_prompt(prompts, device="cpu", max_sequence_length=512)
    length = theirs.shape[1]
    assert_close(said.hidden[:, :length], theirs)
    assert (
        torch.equal(said.added["mask"][:, :length], mask.bool()) and not said.added["mask"][:, length:].any()
    )
    assert said.hidden.shape[1] == 512 and cut == ["", "", ""]
    _, (rest,) = bundle.encode_prompts(["木桌上的花瓶" * 60], 32)
    assert rest.endswith("木桌上的花瓶")  # it reads 512 tokens, of which these letters take three each


def test_flux_reads_as_the_pipeline_does(folders: dict[str, Path]) -> None:
    bundle, pipe = load_bundle(folders["flux"]), bases.pipeline("flux")
    said, cut = bundle.encode_prompts(["a park", "light " * 200], 32)
    hidden, pooled, _ = pipe.encode_prompt(["a park", "light " * 200], None, "cpu")
    assert_close((said.hidden, said.added["pooled"]), (hidden, pooled), rtol=1e-3, atol=1e-4)
    assert cut[0] == "" and cut[1].strip().endswith("light")  # T5 reads 512 tokens


def test_t5_may_be_missing(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = bases.pipeline("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path)
    bundle = load_bundle(tmp_path)
    said, cut = bundle.encode_prompts(["a park", "light " * 100], 32)
    assert not said.hidden[:, -256:].any() and said.hidden[:, :-256].any()
    assert len(cut[1]) > 500  # CLIP reads but 24 tokens here
    assert len(load_skeleton(str(tmp_path)).modules) == len(bundle.modules) == 5
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec("\n".join(usage("merged", {}, bundle)), names)  # the model card's lines
    assert names["pipe"].text_encoder_3 is None


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_a_step_trains_what_it_should(
    folders: dict[str, Path], make_batch: MakeBatch, reward: Reward, name: str, mode: str
) -> None:
    """All that is trained, and nothing else, has a gradient."""
    bundle = moved(folders[name], mode)
    output = train_a_step(bundle, make_batch(bundle), reward)
    assert output.loss.isfinite() and output.reg > 0
    trained = bundle.trainable()
    assert all(p.grad is not None for p in trained.values())
    assert {key for key, p in trained.items() if not p.grad.any()} <= ZERO
    assert all(key.startswith(f"{bundle.part_of(mode)}.") for key in trained)
    every = [p for module in [*bundle.modules, bundle.unwrapped] for p in module.parameters()]
    assert len({id(p) for p in every if p.grad is not None}) == len(trained)


@pytest.mark.slow
@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("alpha", [1.0, 0.0])  # DRaFT-K, DRTune
@pytest.mark.parametrize("name", BASES)
def test_other_objectives_reach_the_weights(
    folders: dict[str, Path], make_batch: MakeBatch, reward: Reward, name: str, alpha: float
) -> None:
    """Through the sampler, from the finished picture."""
    bundle = moved(folders[name], "denoiser_lora")
    batch, schedule = make_batch(bundle), bundle.schedule(4, 32)
    objective = Surrogate(ObjectiveSettings(3.0), sees="finished", alpha=alpha)
    output = objective.step(bundle, reward, batch, schedule, [2, 3], Tensor.backward)
    gradients = [p.grad for p in bundle.trainable().values()]
    assert output.loss.isfinite()
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("name", BASES)
def test_checkpointing_leaves_the_gradient(
    folders: dict[str, Path], make_batch: MakeBatch, reward: Reward, name: str
) -> None:
    gradients = []
    for checkpointing in (False, True):
        bundle = moved(folders[name], "denoiser_lora", "controlnet")
        if checkpointing:
            bundle.enable_gradient_checkpointing()
        train_a_step(bundle, make_batch(bundle), reward)
        gradients.append({key: p.grad for key, p in bundle.trainable().items()})
    assert_close(*gradients)


def train_a_step(bundle: Bundle, batch: Batch, reward: Reward) -> StepOutput:
    objective = Surrogate(ObjectiveSettings(3.0, ConsistentCondition(), 0.1))
    return objective.step(bundle, reward, batch, bundle.schedule(4, 32), [2], Tensor.backward)


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("name", [*BASES, *SLOWLY])
def test_the_gradient_is_that_of_a_loop_with_diffusers_scheduler(
    folders: dict[str, Path], make_batch: MakeBatch, name: str
) -> None:
    """What of step 2 of 4 a LoRA would change, in the pipeline's own loop."""
    bundle = moved(folders[name], "denoiser_lora")
    batch, scale = make_batch(bundle), scale_of(name)
    wanted = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(5))
    x = rollout(bundle.denoiser, batch, bundle.schedule(4, 32), scale, stop=2)
    theta = predict(bundle.denoiser, x, 2, batch, bundle.schedule(4, 32), scale)
    (advance(theta.guided, 2, batch, bundle.schedule(4, 32)) * wanted).sum().backward()
    ours = {key.partition(".")[2]: p.grad for key, p in bundle.trainable().items()}

    pipe, part = stock(name), bundle.family.part
    adapted = adapt_as(getattr(pipe, part), getattr(bundle.pipe, part))
    reached: list[Tensor] = []

    def after(i: int, latents: Tensor) -> Tensor:
        reached.append(latents)
        return latents.detach()

    stock_latent(pipe, batch, control_of(name), 4, scale, after)
    (reached[2] * wanted).sum().backward()
    assert adapted.keys() == ours.keys()
    for key, parameter in adapted.items():
        assert_close(ours[key], parameter.grad)


def adapt_as(network: Any, other: Any) -> dict[str, torch.nn.Parameter]:
    """Give a network the adapter of another one; returns its weights."""
    network.requires_grad_(False).add_adapter(other.peft_config["default"])
    adapters = {key: value for key, value in other.state_dict().items() if ".lora_" in key}
    network.load_state_dict(network.state_dict() | adapters)
    return {key: p for key, p in network.named_parameters() if p.requires_grad}


@pytest.mark.usefixtures("short_texts")
@pytest.mark.parametrize("name", [*BASES, SLOWLY[0]])
@pytest.mark.parametrize(("format", "modes"), FORMATS)
def test_exported_weights_paint_the_trainers_picture(
    folders: dict[str, Path],
    tmp_path: Path,
    make_batch: MakeBatch,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    format: str,
    modes: list[str],
) -> None:
    """As the model card's own lines load them."""
    # diffusers reads no more than FLUX's attention in the names that ComfyUI knows.
    trained = moved(folders[name], *modes, targets=ATTENTION if format == "kohya" else TARGETS)
    export_bundle(trained, format, tmp_path, "lora")
    if format == "kohya" and name not in READ_BACK:
        return
    batch, scale = make_batch(trained), scale_of(name)
    ours = rollout(trained.denoiser, batch, trained.schedule(4, 32), scale)
    with trained.reference():
        assert (ours - rollout(trained.denoiser, batch, trained.schedule(4, 32), scale)).abs().max() > 0.01
    config = config_from({"run": {"name": "lora"}, "model": {"bundle": str(folders[name]), "train": modes}})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(usage(format, asdict(config), trained)), names)
    assert type(names["pipe"]) is type(trained.pipe)
    pipe = inpainting(names["pipe"], names.get("controlnet"))
    theirs = stock_latent(pipe, batch, control_of(name), 4, scale)
    assert_close(ours, theirs, rtol=0, atol=2e-4)
