"""The newer bases by the real command line, and what of the published ones can be had without weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rfft import build
from rfft.config.load import load_config
from rfft.errors import UserError
from rfft.generation.export import export_bundle
from rfft.models.load import load_bundle, load_skeleton
from tests import bases, published

RunCommand = Callable[..., tuple[int, str, str]]
BASES = ["sd3", "kolors", "flux", "qwen_image"]
# Parameters of denoiser, ControlNet, autoencoder and text encoders.
PARAMETERS = {
    "sd35_medium": [2_243_171_520, 538_805_760, 83_819_683, 123_650_304, 694_659_840, 4_762_310_656],
    "sd35_large": [8_056_627_520, 2_153_518_976, 83_819_683, 123_650_304, 694_659_840, 4_762_310_656],
    "kolors": [2_579_458_820, 1_263_009_296, 83_653_863, 6_243_584_000],
    "flux": [11_901_408_320, 1_791_605_248, 83_819_683, 123_060_480, 4_762_310_656],
    "qwen_image": [20_430_401_088, 1_768_003_584, 126_892_531, 8_292_166_656],
}
CONFIGS = {
    "sd35_large": "sd35_lora_cc",
    "kolors": "kolors_lora_cc",
    "flux": "flux_lora_cc",
    "qwen_image": "qwen_image_lora_cc",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in BASES}
    for name, folder in made.items():
        bases.save(name, folder)
    return made


@pytest.mark.parametrize(
    "name", [name if name == "sd3" else pytest.param(name, marks=pytest.mark.slow) for name in BASES]
)
def test_a_base_is_trained_resumed_exported_and_painted_with(
    folders: dict[str, Path],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: RunCommand,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["data.count=3", "trainer.sample_every=0", "evaluate.enabled=false", "trainer.checkpoint_every=1"]
    base = [f"model.bundle={folders[name]}", "model.train=[denoiser_lora, controlnet]", *few]
    base += ["rollout.steps=3", "model.lora.target_modules=[to_q, add_q_proj, to_add_out]"]
    for steps in (1, 2):
        code, _, told = run_command("train", world / "config.yaml", *base, f"trainer.steps={steps}")
        assert code == 0, told
    rows = [json.loads(line) for line in Path("runs/small/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(row["train/l_cc"] >= 0 for row in rows)
    exported = Path("runs/small/export/diffusers")
    assert (exported / "pytorch_lora_weights.safetensors").is_file()
    assert (exported / "controlnet/config.json").is_file()

    product = Image.new("RGBA", (40, 60))
    product.paste((200, 60, 30, 255), (10, 10, 30, 50))
    (tmp_path / "photos").mkdir()
    product.save(tmp_path / "photos/vase.png")
    Path("prompts.json").write_text(json.dumps([{"prompt": "a vase, 公园", "negative_prompt": ""}]))
    code, _, told = run_command(
        *(
            "generate",
            "--products",
            "photos",
            "--prompts",
            "prompts.json",
            "--lora",
            exported,
            "--out",
            "out",
        ),
        "evaluate.max_attempts=1",
    )
    assert code == 0, told
    assert (64, 64) in {Image.open(file).size for file in Path("out").rglob("*.png")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_counted_from_published_files(tmp_path: Path, name: str) -> None:
    published.write(name, tmp_path)
    bundle = load_skeleton(str(tmp_path), torch.bfloat16)
    assert [sum(p.numel() for p in network.parameters()) for network in bundle.modules] == PARAMETERS[name]
    assert len(bundle.schedule(20, 1024)) == 20
    wide = [p for p in bundle.unwrapped.parameters() if p.ndim > 1]
    assert sum(p.nbytes for p in wide) < 2.01 * sum(p.numel() for p in wide)
    units = [part for part in bundle.unwrapped.modules() if type(part).__name__ in bundle.family.units]
    inside = sum(p.numel() for unit in units for p in unit.parameters())
    assert inside > 0.85 * sum(PARAMETERS[name][:2])  # what FSDP2 splits block by block


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configs_are_checked_from_published_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    published.write(name, tmp_path / "base")
    (tmp_path / "photos").mkdir()
    for i in range(40):
        product = Image.new("RGBA", (40, 60))
        product.paste((200, 60, 5 * i, 255), (10, 10, 30, 50))
        product.save(tmp_path / f"photos/vase {i}.png")
    Path("prompts.json").write_text(json.dumps([{"prompt": "a vase in a park", "negative_prompt": ""}]))
    networks = [
        "reward.rfnet=rf-tiny-rfnet",
        "reward.depth=rf-tiny-depth",
        "reward.saliency=rf-tiny-saliency",
    ]
    own = ["model.bundle=base", "model.controlnet=null", "data.products=photos", "evaluate.clip=null"]
    code, out, told = run_command("check", CONFIGS[name], *networks, *own)
    assert code == 0, told
    assert "1 with + 1 of the reference" in out and "L_CC" in out
    assert all("this does not fit" in line for line in told.splitlines() if "warning" in line)


def test_what_is_not_supported_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    published.write("flux", tmp_path)

    def refused(match: str, **values: Any) -> None:
        for file, changed in values.items():
            path = tmp_path / file.replace("__", "/")
            path.with_suffix(".json").write_text(
                json.dumps(json.loads(path.with_suffix(".json").read_text()) | changed)
            )
        with pytest.raises(UserError, match=match) as error:
            load_skeleton(str(tmp_path))
        assert "\n" not in str(error.value)

    with pytest.raises(UserError, match=r"data.image_size=40 is no multiple of 16"):
        load_skeleton(str(tmp_path)).schedule(4, 40)
    refused("another base .attention heads 12, this one's 24", controlnet__config={"num_attention_heads": 12})
    refused("takes 384 channels, a patch has 64: FLUX.1 Control", transformer__config={"in_channels": 384})
    refused("Flux2Pipeline, of none of the families", model_index={"_class_name": "Flux2Pipeline"})
    bundle = load_bundle(folders["flux"])
    with pytest.raises(ValueError, match="size"):
        bundle.schedule(4)
    with pytest.raises(UserError, match="knows 1000 timesteps"):
        bundle.schedule(1001, 64)


def test_kolors_without_sentencepiece(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.pipelines.kolors.tokenizer.is_sentencepiece_available", lambda: False)
    with pytest.raises(UserError, match="cannot be loaded .*requires the `sentencepiece` library"):
        load_bundle(folders["kolors"])


def test_text_encoders_stay_out_of_a_devices_memory(folders: dict[str, Path]) -> None:
    """The device is torch's meta one, on which nothing can be computed."""
    bundle = load_bundle(folders["sd3"]).to("meta")
    places = [{p.device.type for p in network.parameters()} for network in bundle.modules]
    assert places == [{"meta"}] * 3 + [{"cpu"}] * 3
    bundle = load_bundle(folders["sd3"])
    before = [p for network in bundle.family.text_networks() for p in network.parameters()]
    bundle.encode_prompts(["a park"], 64)
    after = [p for network in bundle.family.text_networks() for p in network.parameters()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_the_distilled_guidance_is_a_setting(folders: dict[str, Path], world: Path) -> None:
    config = load_config(
        world / "config.yaml", [f"model.bundle={folders['flux']}", "model.embedded_guidance=2"]
    )
    denoiser: Any = build.build_bundle(config, "cpu").unwrapped
    assert denoiser.guidance == 2


@pytest.mark.parametrize(
    ("name", "key"),
    [
        # ComfyUI: "lora_transformer_" and diffusers' names for SD 3 and FLUX (those of OneTrainer),
        ("sd3", "lora_transformer_transformer_blocks_0_attn_add_q_proj"),
        ("flux", "lora_transformer_single_transformer_blocks_1_attn_to_q"),
        # "lora_unet_" and the model's own names for all, which are diffusers' for Qwen-Image and U-Nets.
        ("qwen_image", "lora_unet_transformer_blocks_0_attn_add_q_proj"),
        ("kolors", "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"),
    ],
)
def test_comfyui_knows_the_names(folders: dict[str, Path], tmp_path: Path, name: str, key: str) -> None:
    bundle = load_bundle(folders[name])
    bundle.train(["denoiser_lora"], 2, 4, ["to_q", "add_q_proj"])
    export_bundle(bundle, "kohya", tmp_path, "lora")
    names = load_file(tmp_path / "lora.safetensors")
    assert {f"{key}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")} <= names.keys()
