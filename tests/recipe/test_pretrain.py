"""The embedded networks, each for a few steps on few scenes: they run, go on, and are reported on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
)
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import rfft
from rfft.config.load import find_config
from rfft.diffusion.sampling import rollout
from rfft.errors import Interrupted, UserError
from rfft.models.families.sd3 import StableDiffusion3
from rfft.models.load import load_bundle
from rfft.rewards.judge import Judge
from rfft.rewards.rfnet import RFNet
from rfft.rfnet import learner, world
from rfft.training.pretrain import base, calibrate, flow, judge, maps, probe, rfnet, stress, vae, verdicts
from rfft.training.pretrain.fit import FitConfig, PretrainRun, fit
from rfft.types import Batch
from rfft.utils.signals import StopSignals
from tests.conftest import draw_products
from tests.rows import rows
from tests.stock_bases import stock_latent
from tests.unit.test_lock import holder

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
NETWORKS = {"judge": judge, "probe": probe}
REWARD = "rf-tiny-rfnet"


def test_a_batch_is_available_as_often_as_asked() -> None:
    labels = np.array([0, 1, 2, 3, 4, 0, 1, 1, 1, 1])
    chances = base.sampling_chances(labels)
    assert chances.sum() == pytest.approx(1)
    assert chances[labels == 0].tolist() == pytest.approx([base.AVAILABLE / 2] * 2)


def test_a_saved_state_belongs_to_its_steps_and_seed(tmp_path: Path) -> None:
    def trained(steps: int, seed: int) -> nn.Module:
        layer = nn.Linear(2, 1)

        def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
            return layer(torch.ones(1, 2)).square().sum()

        run = PretrainRun(tmp_path / "out", tmp_path / "state", steps, seed)
        return fit(layer, loss, FitConfig(lr=0.1), run, "a")

    first = trained(2, seed=0).state_dict()
    again = trained(2, seed=0).state_dict()  # all done: what was saved comes back
    assert all(torch.equal(again[name], value) for name, value in first.items())
    with pytest.raises(UserError, match=r"state/a belongs to .*: steps is 2 there, 3 here; .*--state"):
        trained(3, seed=0)
    with pytest.raises(UserError, match="seed is 0 there, 1 here"):
        trained(2, seed=1)
    with holder(tmp_path / "state/a"), pytest.raises(UserError, match="in use by another command"):
        trained(2, seed=0)


def test_a_signal_stops_a_pretraining_after_its_step(tmp_path: Path) -> None:
    """What has been done is kept; the same call goes on as if nothing had been."""

    def trained(state: str, signalled: bool = False) -> nn.Module:
        torch.manual_seed(0)
        layer = nn.Linear(2, 1)

        def loss(step: int, rng: np.random.Generator) -> torch.Tensor:
            if signalled and step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return (layer(torch.ones(1, 2)) - rng.normal()).square().sum()

        with StopSignals() as signals:
            run = PretrainRun(tmp_path / "out", tmp_path / state, steps=4, signals=signals)
            return fit(layer, loss, FitConfig(lr=0.1), run, "a")

    with pytest.raises(Interrupted, match="stopped after step 2"):
        trained("parts", signalled=True)
    parts, whole = trained("parts").state_dict(), trained("whole").state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert rows(tmp_path / "parts/a") == rows(tmp_path / "whole/a")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the embedded models, to go on from; few scenes, small batches."""
    monkeypatch.setenv("RFFT_CACHE", str(tmp_path / "cache"))
    for variant in verdicts.COUNTS:
        monkeypatch.setitem(verdicts.COUNTS, variant, 8)
        monkeypatch.setitem(judge.SCENES, variant, ("judge", 8, 2))
    for variant in maps.SCENES:
        monkeypatch.setitem(maps.SCENES, variant, ("rfnet", 16, 1))
    monkeypatch.setattr(maps, "TESTS", (("test_styles", 8, 9),))
    monkeypatch.setattr(calibrate, "SOURCES", (("val", 100, 9),))
    monkeypatch.setattr(stress, "COUNT", 100)
    monkeypatch.setattr(stress, "ATTACKED", 4)
    for split in verdicts.ASSESSED:
        monkeypatch.setitem(verdicts.ASSESSED, split, (split, 100, 9))
    for module in (vae, base, maps, *NETWORKS.values()):
        monkeypatch.setattr(module, "BATCH", 4)
    for module in (vae, base):
        monkeypatch.setattr(module, "SCENES", 16)
    monkeypatch.setattr(vae, "TEST_SCENES", 8)
    folder = tmp_path / "out"
    for name in ("rf-tiny", *(f"rf-tiny-{part}" for part in (*NETWORKS, "rfnet", "depth", "saliency"))):
        shutil.copytree(Path(rfft.__file__).parent / "assets" / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("part", "folder", "low", "high"),  # of the figure it reports last, a PSNR or a mean error
    [
        ("vae", "rf-tiny/vae", 15, 40),
        ("depth", "rf-tiny-depth", 0, 0.3),
        ("saliency", "rf-tiny-saliency", 0, 0.3),
    ],
)
def test_vae_and_maps_go_on(
    out: Path,
    run_command: Callable[..., tuple[int, str, str]],
    part: str,
    folder: str,
    low: float,
    high: float,
) -> None:
    (file,) = (out / folder).glob("*.safetensors")
    before = load_file(file)
    code, said, told = run_command(
        *("adworld", "pretrain", part, "--out", out, "--state", out / "state", "--steps", 2)
    )
    assert code == 0, told
    after = load_file(file)
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in after)
    assert low < float(re.findall(r"\d+\.\d+", said)[-1]) < high


def test_what_a_shape_is_of(tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]) -> None:
    for part, told in (("judge", "--shape sd3 is one of base"), ("base", "train vae first")):
        code, _, said = run_command("adworld", "pretrain", part, "--shape", "sd3", "--out", tmp_path / "none")
        assert code == 2 and told in said, said


@pytest.mark.slow
def test_the_flow_is_trained_goes_on_and_is_a_base(
    out: Path,
    run_command: Callable[..., tuple[int, str, str]],
    make_batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RFFT loads the folder and paints with it, and so does diffusers' own pipeline, the same picture."""
    folder, weights = out / flow.NAME, []
    for seed in (0, 1):
        command = ["adworld", "pretrain", "base", "--shape", "sd3", "--steps", 2, "--seed", seed]
        code, _, told = run_command(*command, "--out", out, "--state", out / f"state{seed}")
        assert code == 0, told
        weights.append(load_file(folder / "transformer/diffusion_pytorch_model.safetensors"))
    assert any((weights[0][name] != tensor).any() for name, tensor in weights[1].items())
    assert sum(file.stat().st_size for file in folder.rglob("*.safetensors")) < 25e6

    few = ["data.count=1", "evaluate.enabled=false", "rollout.steps=8", "rollout.last=4"]
    code, said, told = run_command("check", "tiny_flow", f"model.bundle={folder}", *few)
    assert code == 0 and "denoiser_lora" in said, told
    bundle = load_bundle(folder)
    assert isinstance(bundle.family, StableDiffusion3)
    batch, size = make_batch(bundle, size=64), 64
    monkeypatch.setattr(
        "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample",
        lambda self, generator=None: self.mode(),
    )
    ours = rollout(bundle.denoiser, batch, bundle.schedule(4, size), 3.0)
    no_t5 = {"text_encoder_3": None, "tokenizer_3": None}  # diffusers asks for them
    pipe = StableDiffusion3ControlNetPipeline.from_pretrained(folder, **no_t5)
    edges = 2 * draw_products(2, torch.Generator().manual_seed(3), size)[1] - 1
    assert_close(ours, stock_latent(pipe, batch, edges, 4, 3.0), rtol=0, atol=1e-4)
    prompts = ["a park", ""]
    theirs = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    assert_close(bundle.encode_prompts(prompts, size)[0].hidden, theirs[0])
    StableDiffusion3ControlNetInpaintingPipeline.from_pretrained(folder, **no_t5)


@pytest.mark.slow
def test_generator_and_networks_go_on_and_are_assessed(
    out: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    weights = {
        part: out / folder / "model.safetensors"
        for part, folder in {"base": "rf-tiny/text_encoder", "judge": judge.NAME}.items()
    }
    before = {part: load_file(file) for part, file in weights.items()}
    for part in ("base", *NETWORKS):
        code, _, told = run_command(
            *("adworld", "pretrain", part, "--out", out, "--state", out / "state", "--steps", 2)
        )
        assert code == 0, told
    for part, file in weights.items():
        after = load_file(file)
        assert before[part].keys() == after.keys()
        assert any((before[part][name] != after[name]).any() for name in after), part

    code, said, told = run_command("adworld", "assess", "--out", out)
    assert code == 0, told
    read = json.loads((out / judge.NAME / "report.json").read_text())
    variants = ("render", "vae", "x0_hat")
    assert read.keys() == {f"{split}/{name}" for split in ("val", "test") for name in variants}
    assert "val: validation scenes, for choosing" in said
    for variant in read.values():
        assert sum(map(sum, variant["confusion"])) == 100
        assert 0 <= variant["agrees_with_rfnet"] <= 1 and 0 <= variant["macro_f1_with_rfnet"] <= 1
    dependence = json.loads((out / rfnet.NAME / "dependence.json").read_text())
    own = json.loads((out / rfnet.NAME / "report.json").read_text())
    assert dependence["g"]["render"] < own["test/render"]["macro_f1"]
    assert RFNet.from_pretrained(out / rfnet.NAME).config.num_labels == 5

    code, said, told = run_command("adworld", "calibrate", "--out", out)
    assert code == 0 and said.count("temperature") == 2, told
    code, again, told = run_command("adworld", "calibrate", "--out", out)
    assert [float(t) for t in re.findall(r"temperature (\S+),", again)] == pytest.approx([1, 1], abs=0.02)
    code, _, told = run_command("adworld", "assess", "--stress", "--out", out)
    assert code == 0, told
    for name in (rfnet.NAME, judge.NAME):
        read = json.loads((out / name / "stress.json").read_text())
        assert read["sources"].keys() == set(stress.SOURCES)
        assert all(0 <= share <= 1 for share in read["changed/test"].values())
        assert sum(row["count"] for row in read["reliability/test_styles"]) == 100
        assert 0 <= read["attack/test"]["deceived"] <= 1
    assert Judge.from_pretrained(out / judge.NAME).config.num_labels == 5


FEW = (  # scenes of each variant, some steps
    *("data.scenes.render=8", "data.scenes.vae=8", "data.scenes.x0_hat=8", "data.scenes.validation=4"),
    *("trainer.batch_size=4", "trainer.steps=4", "trainer.validate_every=2", "optimizer.warmup=2"),
    *("run.seed=12", "trainer.mixed_precision=no"),
)


@pytest.mark.slow
def test_the_whole_world_is_made_from_nothing(
    out: Path, run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one command, which goes on where it was cut off, and says what took how long."""
    shutil.rmtree(out)
    recipe = yaml.safe_load(find_config(world.RECIPE).read_text())
    recipe["data"]["scenes"] |= {"render": 8, "vae": 8, "x0_hat": 8, "validation": 4}
    recipe["trainer"] |= {"batch_size": 4, "validate_every": 2}
    recipe["optimizer"] |= {"warmup": 1}
    small = out.parent / "small.yaml"
    small.write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(world, "RECIPE", str(small))
    every = ("adworld", "pretrain", "all", "--out", out, "--state", out / "state", "--steps", 2)

    def fails(folder: Path) -> None:
        raise UserError("cut off")

    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "calibrate", fails)
        code, said, told = run_command(*every)
    assert code == 2 and said.count("== ") == len(world.PARTS) + 1, told
    minutes = json.loads((out / "state" / world.TIMES).read_text())
    assert [part for part, took in minutes.items() if took["done"]] == list(world.PARTS)
    code, said, told = run_command(*every)
    assert code == 0 and re.findall("== (.*)", said) == ["calibrate", "assess", "stress"], told
    assert re.search(r"together: \d+\.\d minutes", said)
    assert 0 <= json.loads((out / REWARD / "report.json").read_text())["test/render"]["macro_f1"] <= 1


@pytest.mark.slow
def test_the_embedded_rfnet_is_gone_on_from_and_resumed_bit_for_bit(
    out: Path,
    tmp_path: Path,
    run_command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By `rfft rfnet train`, on augmented scenes in all variants; of an input it may go without, too."""
    monkeypatch.chdir(tmp_path)
    every = ("rfnet", "train", "rfnet_embedded", "rfnet.init=rf-tiny-rfnet", *FEW)
    micro_batch, calls = learner.RFNetLearner.micro_batch, []

    def disturbed(self: learner.RFNetLearner, micro: int) -> dict[str, torch.Tensor]:
        calls.append(micro)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return micro_batch(self, micro)

    with monkeypatch.context() as patched:
        patched.setattr(learner.RFNetLearner, "micro_batch", disturbed)
        code, _, told = run_command(*every, "run.name=parts")
    assert code == 75 and "stopped after step 3" in told, told
    code, _, told = run_command(*every, "run.name=parts", "trainer.steps=5")
    assert code == 2 and "the rate's one cycle ends at step 4, not 5: keep trainer.steps" in told
    for name in ("parts", "whole"):
        code, _, told = run_command(*every, f"run.name={name}")
        assert code == 0 and ("goes on after step 3 of 4" in told) == (name == "parts"), told
    assert rows("runs/parts") == rows("runs/whole")
    for file in (
        "rfnet/model.safetensors",
        *(f"checkpoints/step-000004/{n}.safetensors" for n in ("rfnet", "ema")),
    ):
        assert Path("runs/parts", file).read_bytes() == Path("runs/whole", file).read_bytes(), file
    written, shipped = (
        load_file("runs/whole/rfnet/model.safetensors"),
        load_file(out / REWARD / "model.safetensors"),
    )
    assert {name: (t.shape, t.dtype) for name, t in written.items()} == {
        name: (t.shape, t.dtype) for name, t in shipped.items()
    }  # half precision, and nothing of the layer that reads attributes
    rates = [row["train/lr"] for row in rows("runs/whole") if "train/lr" in row]
    assert max(rates) == rates[2] == 1.5e-3
    validated = json.loads(Path("runs/whole/evaluation.json").read_text())
    assert validated["pictures"] == 3 * 4

    code, _, told = run_command(*every, "run.name=no-d", "rfnet.drop=[d]", "trainer.steps=2")
    assert code == 0, told
    arms = [f"--ablation=runs/{name}" for name in ("whole", "no-d")]
    code, _, told = run_command("adworld", "assess", "--out", out, *arms)
    assert code == 0, told
    found = json.loads((out / REWARD / "ablation.json").read_text())
    assert {name: found[name]["steps"] for name in ("none", "d")} == {"none": 4, "d": 2}
    assert 0 <= found["d"]["x0_hat"]["macro_f1"] <= 1
