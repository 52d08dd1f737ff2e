"""`rfft check`: it says what would run, and refuses what training would refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rfft.adworld import products
from rfft.adworld.draw import draw_dataset
from rfft.config.load import load_config
from rfft.rewards.preference import PickScore
from rfft.training import costs
from rfft.utils.estimate import Cost
from tests.toys import Darkness

CONFIGS = Path(__file__).parents[2] / "configs"
DARKNESS = "reward.terms=[{use: rfnet}, {use: 'tests.toys:Darkness', weight: 0.5}]"
DRAFT = ("objective.use=draft", "objective.regularizer=none", "rollout.grad_steps=2")
RULED = ("objective.options={group: 2}", "rollout.grad_steps=1")
TERA, GIB = 10**12, 2**30

Check = Callable[..., tuple[int, dict[str, str], str]]


@pytest.fixture
def check(
    run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Check:
    """check(config, *overrides) -> (exit code, facts, stderr); it writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(products, "REFERENCE_IMAGES", 4)
    monkeypatch.setenv("COLUMNS", "1000")

    def run(config: Path, *overrides: str) -> tuple[int, dict[str, str], str]:
        before = sorted(tmp_path.rglob("*"))
        code, out, told = run_command("check", config, *overrides)
        assert sorted(tmp_path.rglob("*")) == before
        facts = (line.partition("  ") for line in out.splitlines())
        return code, {name: value.strip() for name, _, value in facts}, told

    return run


def test_the_main_job(check: Check) -> None:
    code, facts, told = check(CONFIGS / "tiny.yaml")
    assert code == 0, told
    assert facts["run folder"] == "runs/tiny"
    assert facts["objective"] == "F_AC + 0.03 * L_CC"
    # Of the last ten of 40 steps four are trained, 2.5 apart: the last one is step 37, 38 or 39, from 0.
    expected = "34 to 36 without gradient + 4 with + 4 of the reference"
    assert facts["denoiser forwards per micro-batch"] == expected
    assert facts["trained"] == "denoiser_lora: 816,128 parameters in 184 tensors"
    products = "products with 500 prompts from adworld:train"
    assert facts["training"].endswith(products)
    assert facts["evaluation"].startswith("24 products with 48 prompts from adworld:test")
    assert float(facts["memory: start-up, at least"].split()[0]) > 0.05
    assert "memory: moving average" not in facts and "not counted" not in facts


@pytest.mark.parametrize(
    ("overrides", "flops", "activations"),
    [
        # 2 or 3 steps, then the trained one and the reference's; 3 pictures are judged, first 2 of them
        ([], 4.5 * 1 + 2 + 1.5 * 0.75, 1),
        (["objective.regularizer=none", "trainer.accumulation=3"], 3 * (3.5 * 1 + 2 + 1.5 * 0.75), 1),
        (["rollout.grad_steps=2"], 6 * 1 + 2 * 2 + 2 * 1.5 * 0.75, 1),  # each trained step is judged
        (DRAFT, 4 * 1 + 2 * 2 + 1.5 * 0.75, 2),  # 2 steps without, 2 with gradient, whose end is judged
        # 4 steps, one of them trained, and its reference
        (["objective.use=drtune"], 5 * 1 + 2 + 1.5 * 0.75, 1),
        # the last step again for two noised copies, each judged
        (["objective.use=draft-lv", "rollout.grad_steps=1"], 6 * 1 + 3 * 2 + 3 * 1.5 * 0.75, 1),
        # groups of 2: 4 steps, then one of them again; verdicts take no backward
        ([*RULED, "objective.use=ddpo"], 2 * 4 * 1 + 2 * 3 + 2 * 1.5 * 0.25, 2),
        ([*RULED, "objective.use=nft"], 2 * 4 * 1 + 2 * 3 + 2 * 1.5 * 0.25, 2),
        ([*RULED, "objective.use=dpo"], 2 * 4 * 1 + 2 * (3 + 1) + 2 * 1.5 * 0.25, 2),  # and the reference
    ],
)
def test_flops_and_activations_by_hand(
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    flops: float,
    activations: int,
) -> None:
    """Denoiser: 1 TFLOP forward, 2 back, 1 GiB held; decoder and rewards 0.25 and 0.5 for two, 3 GiB."""
    called = Cost(TERA, 2 * TERA, GIB), Cost(TERA // 4, TERA // 2, 3 * GIB), True
    monkeypatch.setattr(costs, "_calls", lambda *_: called)
    same = ["trainer.batch_size=3", "trainer.decode_batch=2", "evaluate.enabled=false"]
    found = costs.costs(load_config(world / "config.yaml", [*same, *overrides]))
    assert found.facts["per optimizer step and process"] == f"{flops:.2f} TFLOP"
    assert found.memory()["denoiser's activations"] == f"{activations}.00 GiB"
    assert (
        found.memory()["together, at least"] == f"{activations + 3}.00 GiB"
    )  # the small weights are < 0.005


@pytest.mark.parametrize(("through", "together"), [("x0_hat", 5), ("drtune", 6)])
def test_merged_weights_by_hand(
    world: Path, monkeypatch: pytest.MonkeyPatch, through: str, together: int
) -> None:
    """5 GiB of them: before the forward with gradient, whose 1 GiB waits for the 3 of the judgement; DRTune
    makes them anew for the steps behind it."""
    monkeypatch.setattr(costs, "_calls", lambda *_: (Cost(0, 0, GIB), Cost(0, 0, 3 * GIB), True))
    monkeypatch.setattr(costs, "merged_bytes", lambda _: 5 * GIB)
    settings = ["evaluate.enabled=false", f"objective.use={through}"]
    found = costs.costs(load_config(world / "config.yaml", settings))
    assert found.memory()["together, at least"] == f"{together}.00 GiB"


def test_drafts_gradient_goes_through_the_whole_denoiser(world: Path) -> None:
    """Through the U-Net's frozen encoder, too, which a trained ControlNet alone does not need."""
    found = {}
    for through in ("x0_hat", "draft"):
        settings = [f"objective.use={through}", "objective.regularizer=none", "model.train=[controlnet]"]
        config = load_config(world / "config.yaml", settings)
        bundle = costs.load_skeleton(config.model.bundle)
        bundle.train(["controlnet"], 1, 1.0, [])
        rfnet = costs.build.build_rfnet(config, "cpu")
        reward = costs.build.build_reward(config, rfnet, "cpu")
        work = costs.build.build_objective(config).work(config.rollout.steps, [0])
        found[through], *_ = costs._calls(config, bundle, reward, work)
    assert found["draft"].forward == found["x0_hat"].forward
    assert found["draft"].backward > found["x0_hat"].backward
    assert found["draft"].activations > found["x0_hat"].activations


def test_draft_and_other_rewards(check: Check, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ["evaluate.enabled=false", "data.count=2"]
    settings = [*plain, *DRAFT, DARKNESS, "ema.enabled=true", "rollout.shared_draw=4"]
    code, facts, told = check(world / "config.yaml", *settings, "trainer.accumulation=2")
    assert code == 0, told
    assert facts["objective"] == "F_AC + 0.5 * tests.toys:Darkness, through the last 2 steps (DRaFT-K)"
    expected = "2 without gradient + 2 with + 0 of the reference"
    assert facts["denoiser forwards per micro-batch"] == expected
    assert facts["processes"] == "2 or 4, because of rollout.shared_draw=4"
    assert "memory: moving average" in facts and "not counted" not in facts

    judged = Darkness.__call__
    monkeypatch.setattr(
        Darkness,
        "__call__",
        lambda self, image, batch: (float(image.detach().mean()), judged(self, image, batch))[1],
    )
    _, facts, _ = check(world / "config.yaml", *settings, "trainer.accumulation=2")
    assert "not counted" not in facts  # small calls are computed, with values
    monkeypatch.setattr(costs, "COMPUTED", 0)
    _, facts, _ = check(world / "config.yaml", *settings, "trainer.accumulation=2")
    assert facts["not counted"] == "FLOPs and activations of rewards beside RFNet"  # it looks at values


def test_computed_costs_are_the_imagined_ones(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(world / "config.yaml", ["evaluate.enabled=false"])
    computed = costs.costs(config)
    monkeypatch.setattr(costs, "COMPUTED", 0)
    imagined = costs.costs(config)
    assert computed.facts == imagined.facts and computed.lasting == imagined.lasting
    assert computed.passing == pytest.approx(imagined.passing, rel=0.01)


def test_networks_of_rewards_are_counted(world: Path, clip: Path) -> None:
    config = load_config(world / "config.yaml", ["evaluate.enabled=false"])
    without = costs.costs(config)
    extra = f"reward.terms=[{{use: rfnet}}, {{use: pickscore, options: {{model: '{clip}'}}}}]"
    config = load_config(world / "config.yaml", ["evaluate.enabled=false", extra])
    found = costs.costs(config)
    grown = [int(run.facts["parameters in all"].replace(",", "")) for run in (without, found)]
    assert grown[1] - grown[0] == sum(p.numel() for p in PickScore(str(clip)).parameters())
    assert "not counted" not in found.facts


def test_a_plan_that_does_not_fit_is_told_loudly(check: Check, world: Path) -> None:
    settings = ["evaluate.enabled=false", "data.count=2", "rollout.shared_draw=600000000000"]
    huge = ["trainer.batch_size=10000000", "trainer.accumulation=100000000000"]
    code, facts, told = check(world / "config.yaml", *settings, *huge)
    assert code == 0  # it may be meant for another machine
    assert "warning: this does not fit: a process needs " in told and facts["memory: of this machine"] in told
    assert facts["processes"].startswith("6 or 12 or 24 or 30 or ")  # found without counting to 10^11


REFUSED = {
    "data.products=adworld:nope": "adworld:nope: no such split",
    "data.image_size=128": "set data.image_size=64",
    "evaluate.products=adworld:nope": "adworld:nope: no such split",
    "evaluate.count=100000000": "draws 50,000 of such pairs at most: lower data.count (evaluate.count)",
    "evaluate.reference=adworld:nope": "adworld:nope: no such split",
    "evaluate.clip=nowhere": "CLIP model nowhere",
    "evaluate.pickscore=nowhere": "CLIP model nowhere",
    "evaluate.judge=nowhere": "nowhere: no such network",
    "reward.saliency=nowhere": "nowhere: no such network",
    "reward.terms=[{use: rfnet}, {use: nowhere}]": "reward.terms 'nowhere' is not known",
    "model.lora.target_modules=[nothing]": "model.lora.target_modules",
    "model.controlnet=nowhere": "model.controlnet nowhere: neither a folder nor a hub id",
    "model.tiny_vae=nowhere": "model.tiny_vae nowhere: neither a folder nor a hub id",
    "rollout.steps=1000": "rollout.steps=1000: the bundle knows 1000 timesteps",
}


def test_what_training_would_refuse(check: Check, world: Path) -> None:
    for override, message in REFUSED.items():
        code, _, told = check(
            world / "config.yaml", "data.count=2", "evaluate.count=2", "evaluate.reference=null", override
        )
        assert code == 2 and message in told and len(told.splitlines()) == 1, (override, told)


def test_rfnet(check: Check, tmp_path: Path) -> None:
    """configs/rfnet_paper.yaml with random weights, on eight pictures of which six are for training."""
    for name, count, split in (("train", 6, "train"), ("val", 2, "val")):
        draw_dataset(tmp_path / name, count, seed=0, split=split, workers=1)
    (tmp_path / "train/depth/0000000.png").unlink()
    weights = ["rfnet.image_encoder.weights=null", "rfnet.text_encoder.weights=null"]
    settings = [*weights, "rfnet.text_encoder.tokenizer=rf-tiny-rfnet", "trainer.batch_size=2"]
    settings += ["maps.known=true", "maps.depth=rf-tiny-depth"]
    code, facts, told = check(
        CONFIGS / "rfnet_paper.yaml", *settings, "data.train=[train]", "data.validation=[val]"
    )
    assert code == 0, told
    assert facts["trained"].startswith("189,785,221") and facts["trained"].endswith("384 px")
    assert facts["training"] == "6 pictures of train" and facts["validation"] == "2 pictures of val"
    assert facts["optimizer steps of one process"].startswith("30 of 3 an epoch")
    assert facts["maps"] == "1 of depth to be made by rf-tiny-depth"

    code, _, told = check(CONFIGS / "rfnet_paper.yaml", *settings)
    assert code == 2 and told.startswith("rfft: data/rf1m")
