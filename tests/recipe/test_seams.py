"""Each seam takes a part of one's own by dotted path: the real command line trains it for two steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

RunCommand = Callable[..., tuple[int, str, str]]
SHORT = (
    "evaluate.enabled=false",
    "trainer.sample_every=0",
    "trainer.checkpoint_every=1",
    "data.count=4",
)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package outside rfft, in the folder in which commands are started."""
    package = tmp_path / "work/toy_parts"
    package.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("toy_parts.py"), package / "__init__.py")
    monkeypatch.chdir(package.parent)
    return "toy_parts"


def rows() -> list[dict[str, float]]:
    lines = Path("runs/small/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("settings", "scalar"),
    [
        (
            ["model.family={}:LinearFlow", "model.bundle=toy", "model.lora.target_modules=[linear]"],
            "train/l_cc",
        ),
        (
            ["objective.use={}:OneStep", "objective.options={factor: 2.0}", "objective.regularizer=none"],
            "train/f_ac",
        ),
        (["objective.regularizer={}:FirstMoment"], "train/l_mean"),
        (
            ["reward.terms=[{{use: '{}:Brightness', options: {{wanted: 0.5}}}}]", "reward.rfnet=null"],
            "train/brightness/brightness",
        ),
    ],
    ids=["family", "objective", "regularizer", "reward"],
)
def test_a_part_of_ones_own_is_trained(
    parts: str, world: Path, run_command: RunCommand, settings: list[str], scalar: str
) -> None:
    named = [setting.format(parts) if "{}" in setting else setting for setting in settings]
    code, _, told = run_command("train", world / "config.yaml", *SHORT, *named)
    assert code == 0, told
    assert [row["step"] for row in rows()] == [1, 2]
    assert all(row[scalar] is not None and row["train/skipped"] == 0 for row in rows())
    first, last = (load_file(f"runs/small/checkpoints/step-00000{i}/adapter.safetensors") for i in (1, 2))
    assert any((first[name] != tensor).any() for name, tensor in last.items())
    assert (Path("runs/small/export/diffusers/pytorch_lora_weights.safetensors")).is_file()


@pytest.mark.parametrize("use", ["ddpo", "nft", "dpo"])
def test_a_verdict_without_a_gradient_is_learnt_from(
    parts: str, world: Path, run_command: RunCommand, use: str
) -> None:
    """By objectives that need none; the others refuse it, in `rfft check` as in training, and name these."""
    rule = [f"reward.terms=[{{use: '{parts}:Rule'}}]", "reward.rfnet=null", "optimizer.lr=1e-3"]
    few = ["objective.options={group: 2}", "rollout.grad_steps=1"]
    code, _, told = run_command("train", world / "config.yaml", *SHORT, *rule, f"objective.use={use}", *few)
    assert code == 0, told
    assert all(row["train/reward_loss"] is not None and row["train/skipped"] == 0 for row in rows())
    first, last = (load_file(f"runs/small/checkpoints/step-00000{i}/adapter.safetensors") for i in (1, 2))
    assert any((first[name] != tensor).any() for name, tensor in last.items())
    if use == "nft":
        for command in ("train", "check"):
            code, _, told = run_command(command, world / "config.yaml", *SHORT, *rule, "run.name=other")
            last_line = told.splitlines()[-1]
            assert code == 2 and "has no gradient, which objective.use=rfft needs" in last_line
            assert "set objective.use to ddpo, nft, dpo" in last_line


def test_parts_are_checked_before_they_are_trained(parts: str, world: Path, run_command: RunCommand) -> None:
    """`rfft check` counts a family of one's own, too; what cannot be found is one line."""
    family = [f"model.family={parts}:LinearFlow", "model.bundle=toy", "model.lora.target_modules=[linear]"]
    code, facts, told = run_command("check", world / "config.yaml", *SHORT, *family)
    assert code == 0 and "LinearFlow" not in told and "velocity" not in told, told
    assert "16 parameters in 2 tensors" in facts
    for setting, message in (
        (f"model.family={parts}:Nothing", f"model.family '{parts}:Nothing' cannot be used"),
        (
            "objective.use=grpo",
            "objective.use 'grpo' is not known; give rfft, refl, draft-k, draft-lv, drtune",
        ),
        ("objective.regularizer=l2", "objective.regularizer 'l2' is not known; give cc, kl"),
    ):
        code, _, told = run_command("train", world / "config.yaml", *SHORT, setting)
        assert code == 2 and message in told.splitlines()[-1]


def test_a_run_without_rfnet_is_evaluated_and_reported(
    parts: str, world: Path, run_command: RunCommand
) -> None:
    """Nothing but one's own reward: the judge still judges; what only RFNet could say is left out."""
    terms = f"reward.terms=[{{use: '{parts}:Brightness', options: {{wanted: 0.5}}}}]"
    few = ("evaluate.count=1", "evaluate.prompts_per_product=1", "data.count=4", "trainer.sample_every=0")
    code, _, told = run_command("train", world / "config.yaml", *few, terms, "reward.rfnet=null")
    assert code == 0, told
    summary = json.loads(Path("runs/small/summary.json").read_text())
    assert list(summary["verdicts"]) == ["judge"]
    assert "available_rate_judge" in summary["change"]
    asks_rfnet = ("available_rate", "attempts", *(f"success_at_{k}" for k in (1, 2, 3)))
    assert not set(asks_rfnet) & set(summary["change"])
    assert "judge" in Path("runs/small/report.html").read_text()
    code, shown, told = run_command("compare", "runs/small", "runs/small", "--out", "both")
    assert code == 0, told
