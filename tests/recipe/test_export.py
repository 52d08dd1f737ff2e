"""Exported weights, loaded back by the tools they are for, paint what the trainer paints."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetInpaintPipeline
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from rfft import build
from rfft.cli.main import main
from rfft.config.load import config_from, load_config, to_yaml
from rfft.errors import UserError
from rfft.generation.export import export_bundle
from rfft.generation.model_card import usage
from rfft.generation.sample import paint
from rfft.models.bundle import Bundle
from rfft.models.families.sgm_names import sgm_name
from rfft.models.load import load_bundle
from rfft.types import Batch
from rfft.utils.checkpoint import Checkpoints
from tests import shapes
from tests.repository import Repository
from tests.stock import stock_picture, with_drawn_latent

STEPS, SCALE, ATOL = 4, 3.0, 2e-4
Make = Callable[..., Bundle]
FORMATS = [
    ("diffusers", ["denoiser_lora"]),
    ("diffusers", ["controlnet"]),
    ("diffusers", ["denoiser_lora", "controlnet_lora"]),
    ("kohya", ["denoiser_lora"]),
    ("kohya", ["denoiser_lora", "controlnet"]),
    ("peft", ["denoiser_lora"]),
    ("peft", ["denoiser_lora", "controlnet_lora"]),
    ("merged", ["denoiser_lora"]),
    ("merged", ["denoiser_lora", "controlnet"]),
    ("merged", ["controlnet_lora"]),
]


def load_back(folder: Path, base: Path, format: str) -> Any:
    """As a user of diffusers and peft would, with nothing of ours."""
    load = StableDiffusionControlNetInpaintPipeline.from_pretrained
    if format == "merged":
        return load(folder, safety_checker=None)
    options: dict[str, Any] = {"safety_checker": None}
    if (folder / "controlnet/diffusion_pytorch_model.safetensors").exists():
        options["controlnet"] = ControlNetModel.from_pretrained(folder / "controlnet")
    pipe = load(base, **options)
    if format == "peft":
        for name in ("unet", "controlnet"):
            if (folder / name / "adapter_config.json").exists():
                PeftModel.from_pretrained(getattr(pipe, name), folder / name)  # injects into the module
    elif lora := list(folder.glob("*.safetensors")):
        pipe.load_lora_weights(folder, weight_name=lora[0].name)
    return pipe


@pytest.mark.parametrize(("format", "modes"), FORMATS)
def test_the_picture_is_the_trainers(
    pipeline_folder: Path,
    tmp_path: Path,
    make_trained: Make,
    make_batch: Callable[..., Batch],
    format: str,
    modes: list[str],
) -> None:
    trained = make_trained(*modes)
    batch = with_drawn_latent(trained, make_batch(trained))
    schedule = trained.schedule(STEPS)
    ours = paint(trained, batch, schedule, SCALE)
    base = paint(trained, batch, schedule, SCALE, reference=True)
    assert (ours - base).abs().max() > 10 * ATOL  # training shows

    export_bundle(trained, format, tmp_path, "lora")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pth")]
    theirs = stock_picture(load_back(tmp_path, pipeline_folder, format), batch, STEPS, SCALE)
    alpha = batch.product[:, 3:]
    theirs = alpha * batch.product[:, :3] + (1 - alpha) * theirs
    assert_close(ours, theirs, rtol=0, atol=ATOL)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path, make_trained: Make) -> None:
    trained = make_trained("denoiser_lora", "controlnet")
    before = {name: tensor.clone() for name, tensor in trained.unwrapped.state_dict().items()}
    for format in ("diffusers", "kohya", "peft", "merged"):
        (tmp_path / format).mkdir()
        export_bundle(trained, format, tmp_path / format, "lora")
    after = trained.unwrapped.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_kohya_keys_are_those_comfyui_knows(
    pipeline_folder: Path, tmp_path: Path, make_trained: Make
) -> None:
    """ComfyUI: "lora_unet_" and the diffusers U-Net's parameter name without .weight, dots as underscores."""
    export_bundle(make_trained("denoiser_lora"), "kohya", tmp_path, "tiny")
    layers = load_file(tmp_path / "tiny.safetensors")
    unet = load_bundle(pipeline_folder).pipe.unet
    known = {
        "lora_unet_" + name.removesuffix(".weight").replace(".", "_"): parameter
        for name, parameter in unet.named_parameters()
        if name.endswith(".weight")
    }
    modules = {key.partition(".")[0] for key in layers}
    assert modules <= known.keys() and len(layers) == 3 * len(modules)
    for module in modules:
        down, up = layers[f"{module}.lora_down.weight"], layers[f"{module}.lora_up.weight"]
        assert layers[f"{module}.alpha"].shape == () and float(layers[f"{module}.alpha"]) == 4
        assert down.shape[0] == up.shape[1] == 2
        delta = up.flatten(1) @ down.flatten(1)
        assert delta.shape == known[module].flatten(1).shape


def test_the_peft_adapter_names_rank_and_alpha(tmp_path: Path, make_trained: Make) -> None:
    export_bundle(make_trained("denoiser_lora"), "peft", tmp_path, "lora")
    config = json.loads((tmp_path / "unet/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)


@pytest.mark.parametrize(("format", "modes"), [("kohya", ["controlnet_lora"]), ("peft", ["controlnet"])])
def test_a_form_that_does_not_fit(tmp_path: Path, make_trained: Make, format: str, modes: list[str]) -> None:
    with pytest.raises(UserError, match="use --format diffusers"):
        export_bundle(make_trained(*modes), format, tmp_path, "lora")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    """A run that has a checkpoint with a moving average, and nothing else."""
    config = load_config(world / "config.yaml", ["ema.enabled=true"])
    bundle = build.build_bundle(config, "cpu")
    weights = {k: v.clone() for k, v in bundle.adapter_state_dict().items()}
    average = {k: torch.ones_like(v) for k, v in weights.items()}
    folder = tmp_path / "runs/small"
    Checkpoints(folder / "checkpoints", keep=1).save(2, {"adapter": weights, "ema": average}, {})
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rfft", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft", "merged"])
def test_export_command(run: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    for _ in range(2):  # the second one takes the first one's place
        assert call(monkeypatch, run, "--format", format) == 0
    card = (run / "export" / format / "README.md").read_text()
    assert "# small" in card and "| objective.regularizer | cc |" in card and "2 optimizer steps" in card
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(run / "export" / format)
    names: dict[str, Any] = {}
    exec(code, names)  # the card's own lines load it
    assert type(names["pipe"]).__name__ == "StableDiffusionControlNetInpaintPipeline"
    assert not list(run.rglob("*.part"))


def test_the_card_names_the_bases_own_controlnet(
    run: Path, pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SD 1.5 and SDXL come without one."""
    base, controlnet = tmp_path / "base", tmp_path / "canny"
    shutil.copytree(pipeline_folder, base)
    shutil.move(base / "controlnet", controlnet)
    index = json.loads((base / "model_index.json").read_text())
    del index["controlnet"]
    (base / "model_index.json").write_text(json.dumps(index))
    changes = [f"model.bundle={base}", f"model.controlnet={controlnet}"]
    (run / "config.yaml").write_text(to_yaml(load_config(run / "config.yaml", changes)))
    assert call(monkeypatch, run) == 0
    code = (run / "export/diffusers/README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(run / "export/diffusers")
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["pipe"].controlnet is names["controlnet"]


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft", "merged"])
def test_the_cards_lines_paint_with_the_embedded_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """As they stand: no dtype is given, and the pipeline is called."""
    config = config_from({"run": {"name": "tiny"}, "model": {"train": ["denoiser_lora"]}})
    bundle = build.build_bundle(config, "cpu")
    export_bundle(bundle, format, tmp_path, "tiny")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(usage(format, asdict(config), bundle)), names)
    picture = Image.new("RGB", (64, 64), "grey")
    pictures = {"image": picture, "mask_image": picture.convert("L"), "control_image": picture}
    painted = names["pipe"]("a park", num_inference_steps=2, output_type="np", **pictures).images
    assert painted.shape == (1, 64, 64, 3)


def test_kohyas_names_of_sdxl_are_the_original_unets(tmp_path: Path) -> None:
    """sd-scripts numbers SDXL's blocks as Stability's code does; diffusers reads these names back."""
    assert sgm_name("down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0", 2) == (
        "input_blocks.4.1.transformer_blocks.1.attn2.to_out.0"
    )
    assert sgm_name("mid_block.resnets.1.time_emb_proj", 2) == "middle_block.2.emb_layers.1"
    assert sgm_name("up_blocks.0.upsamplers.0.conv", 2) == "output_blocks.2.2.conv"
    assert sgm_name("up_blocks.2.resnets.2.conv_shortcut", 2) == "output_blocks.8.0.skip_connection"
    assert sgm_name("down_blocks.0.downsamplers.0.conv", 2) == "input_blocks.3.0.op"

    bundle = shapes.bundle_of(shapes.pipeline("sdxl"))
    bundle.train(["denoiser_lora"], 2, 4, ["to_q", "to_out.0", "proj_in", "conv1", "conv"])
    export_bundle(bundle, "kohya", tmp_path, "lora")
    layers = load_file(tmp_path / "lora.safetensors")
    assert not [key for key in layers if "down_blocks" in key or "resnets" in key]
    pipe = shapes.pipeline("sdxl")
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    loaded, own = (
        {name: p for name, p in unet.named_parameters() if "lora_A" in name}
        for unet in (pipe.unet, bundle.pipe.unet)
    )
    assert len(loaded) == len(own) == len(layers) / 3
    for name, tensor in loaded.items():
        assert torch.equal(tensor, own[name.replace(".default_0.", ".default.")])


def test_the_moving_average_is_what_is_exported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, run) == 0
    layers = load_file(run / "export/diffusers/pytorch_lora_weights.safetensors")
    assert all(torch.all(v == (2 if "lora_B" in k else 1)) for k, v in layers.items())  # alpha 4, rank 2


def test_exporting_over_something(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "mine/precious.txt"
    precious.parent.mkdir()
    precious.touch()
    assert call(monkeypatch, run, "--out", precious.parent) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("exists already; name a new folder with --out")
    (run / "export/kohya").mkdir(parents=True)
    (run / "export/kohya/small.safetensors").touch()
    assert call(monkeypatch, run, "--out", run / "export") == 2  # all earlier exports at once
    assert (run / "export/kohya/small.safetensors").exists()
    assert call(monkeypatch, run, "--out", tmp_path / "new/lora") == 0
    assert precious.exists() and (tmp_path / "new/lora/README.md").exists()


def test_an_export_goes_to_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, run, "--push-to-hub", "me/lora") == 2  # there is no network
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("rfft: me/lora: cannot be pushed to the hub") and "hf auth login" in error
    repository = Repository(tmp_path / "hub", monkeypatch)
    assert call(monkeypatch, run, "--push-to-hub", "me/lora", "--private") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://huggingface.co/me/lora/commit/1"
    pushed, exported = repository.folder / "me/lora", run / "export/diffusers"
    names = {"pytorch_lora_weights.safetensors", "README.md", "rfft.yaml"}
    assert {file.name for file in pushed.iterdir()} == names == {file.name for file in exported.iterdir()}
    assert repository.options["private"] is True
    assert all((pushed / name).read_bytes() == (exported / name).read_bytes() for name in names)


def test_a_run_without_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert call(monkeypatch, run) == 2
    assert "no checkpoint yet" in capsys.readouterr().err.splitlines()[-1]
    assert not (run / "export").exists()
