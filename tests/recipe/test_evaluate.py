"""The grid on which models are compared, and what it leaves in a run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel

from rfft import build
from rfft.adworld import products
from rfft.config.load import load_config, to_yaml
from rfft.config.schema import Config
from rfft.data.references import reference_images
from rfft.errors import UserError
from rfft.evaluation import evaluator, store
from rfft.evaluation.evaluator import Evaluator
from rfft.evaluation.runs import evaluate_base
from rfft.utils.checkpoint import Checkpoints
from tests.toys import no_memory

STATES = ("base", "tuned")


@pytest.fixture(autouse=True)
def few_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "REFERENCE_IMAGES", 8)


@pytest.fixture
def config(world: Path) -> Config:
    return load_config(world / "config.yaml")


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Path:
    """A run of which only the last checkpoint is there, its adapter moved off the base model."""
    bundle = build.build_bundle(config, "cpu")
    generator = torch.Generator().manual_seed(5)
    for parameter in bundle.trainable().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "small"
    Checkpoints(folder / "checkpoints", keep=1).save(2, {"adapter": bundle.adapter_state_dict()}, {})
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


@pytest.fixture
def rfft(run_command: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """rfft(*arguments) -> stderr of a command that ends well."""

    def call(*arguments: object) -> str:
        code, _, told = run_command(*arguments)
        assert code == 0, told
        return told

    return call


def evaluator_of(config: Config) -> Evaluator:
    return Evaluator(config, build.build_bundle(config, "cpu"), build.build_rfnet(config, "cpu"))


def test_metrics(config: Config) -> None:
    evaluator = evaluator_of(config)
    found = evaluator()
    metrics = found.metrics
    assert found.images.shape == (6, 2, 3, 64, 64) and found.images.dtype == torch.uint8
    assert metrics["images"] == 12
    for network in ("rfnet", "judge"):
        rate = metrics["available_rate"][network]
        verdicts = found.probabilities[network].argmax(-1)
        assert rate["rate"] == pytest.approx(float((verdicts == 0).float().mean()))
        assert rate["low"] - 1e-9 <= rate["rate"] <= rate["high"] + 1e-9
        failures = [value["rate"] for value in metrics["failures"][network].values()]
        assert len(failures) == 4 and rate["rate"] + sum(failures) == pytest.approx(1)
    assert 1 <= metrics["attempts"] <= 3
    assert metrics["success_at"] == sorted(metrics["success_at"]) and len(metrics["success_at"]) == 3
    assert metrics["diversity"] > 0 and metrics["vendi"] >= 1 and metrics["colourfulness"] > 0
    assert set(metrics["alignment_by"]) == {"surface", "place", "prop", "light"}
    assert np.isfinite([metrics["kid"], metrics["kid_std"]]).all()
    for name in ("attempts", "alignment", "diversity", "vendi", "colourfulness", "kid"):
        low, high = metrics[f"{name}_interval"]
        assert low <= metrics[name] <= high, name


def test_the_grid_is_always_the_same(config: Config) -> None:
    first = evaluator_of(config)()
    config.run.seed = 7
    config.evaluate.batch_size = 5
    second = evaluator_of(config)()
    assert (first.images.int() - second.images.int()).abs().max() <= 1
    assert first.metrics["available_rate"] == second.metrics["available_rate"]


def test_props_count_only_where_asked_for(config: Config) -> None:
    evaluator = evaluator_of(config)
    asked = sum(sample.attributes["prop"] != "none" for sample in evaluator.samples)
    assert 0 < asked < len(evaluator.samples)
    for sample in evaluator.samples:
        sample.attributes["prop"] = "none"
    assert "prop" not in evaluator().metrics["alignment_by"]


def test_more_attempts_only_where_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the product's fidelity looked at in those: its metrics are those of the grid."""
    config.evaluate.fidelity = True
    evaluator = evaluator_of(config)
    painted: list[tuple[int, int]] = []
    original = evaluator._batch
    monkeypatch.setattr(evaluator, "_batch", lambda cells: (painted.extend(cells), original(cells))[1])
    compared: list[int] = []
    monkeypatch.setattr(
        evaluator,
        "product_fidelity",
        lambda bare, *rest: (compared.append(len(bare)), [torch.zeros(len(bare))] * 2)[1],
    )
    found = evaluator()
    accepted = found.probabilities["rfnet"].argmax(-1) == 0
    refused = [i for i in range(6) if not accepted[i].any()]
    assert refused and [cell for cell in painted if cell[1] >= 2] == [(i, 2) for i in refused]
    assert sum(compared) == found.scores["product_psnr"].numel() == 12


def test_only_accepted_pictures(config: Config) -> None:
    """Refused pictures are painted anew, the best is kept; the attempts counted are the model's own."""
    evaluator = evaluator_of(config)
    plain = evaluator()
    bright = plain.images.float().mean(dim=(2, 3, 4)) / 255
    enough = float(bright.median()) + 1e-3  # more than bytes are rounded by

    def bright_is_available(image: torch.Tensor, batch: object) -> torch.Tensor:
        margin = image.mean(dim=(1, 2, 3)) - enough
        return torch.stack([margin, torch.zeros_like(margin)], dim=1)

    evaluator.reward = bright_is_available  # type: ignore[assignment]
    first = evaluator()
    evaluator.settings.only_accepted = True
    found = evaluator()
    before, after = (e.probabilities["rfnet"][..., 0] for e in (first, found))
    accepted, at_last = before > 0.5, after > 0.5
    assert accepted.any() and at_last.sum() > accepted.sum()
    assert torch.equal(after[accepted], before[accepted]) and (after >= before).all()
    same = (found.images == plain.images).flatten(2).all(dim=2)
    assert torch.equal(same, after == before) and not same[at_last & ~accepted].any()
    assert found.metrics["available_rate"]["rfnet"]["rate"] == pytest.approx(at_last.float().mean().item())
    assert found.metrics["attempts"] == first.metrics["attempts"]
    assert len(found.images.flatten(0, 1).flatten(1).unique(dim=0)) == 12


def test_evaluate_command(rfft: Callable[..., str], run: Path) -> None:
    (run / "report.html").write_text("that of older metrics")
    shown = rfft("evaluate", run)
    assert "before and after" in shown and "available (RFNet)" in shown and "evaluation.json" in shown
    assert "Before and after, same seeds" in (run / "report.html").read_text()

    summary = json.loads((run / "summary.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert summary["steps"] == 2
    for state in STATES:
        assert summary[state] == evaluation[state]["metrics"]
        assert {"available_rate", "diversity", "alignment", "kid", "attempts"} <= summary[state].keys()
        assert len(evaluation[state]["probabilities"]["rfnet"]) == len(evaluation["cells"]) == 12
    assert summary["base"] != summary["tuned"]
    images = {state: store.load_pictures(run, state) for state in STATES}
    assert images["base"].shape == (12, 3, 64, 64)
    assert not torch.equal(images["base"], images["tuned"])
    with Image.open(run / "samples/before_after.png") as grid:
        assert grid.size[0] > 12 * 128
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize("base_alone", [False, True])
def test_out_of_memory(
    run_command: Callable[..., tuple[int, str, str]],
    run: Path,
    world: Path,
    base_alone: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line with what helps; with it, the same command does its work."""
    monkeypatch.chdir(run.parent)
    told = "rfft: out of memory (CUDA out of memory). Try in this order: evaluate.batch_size=2 (the same"
    command = ["evaluate", world / "config.yaml" if base_alone else run, "evaluate.batch_size=4"]
    with monkeypatch.context() as patched:
        patched.setattr(evaluator, "paint_bare", no_memory)
        code, _, error = run_command(*command)
    assert code == 2 and error.splitlines()[-1].startswith(told)
    half = ["trainer.mixed_precision=bf16", "model.dtype=bfloat16", "objective.precision=bf16"]
    advised = ["evaluate.batch_size=2", *([] if base_alone else half)]
    assert run_command(*command[:2], *advised)[0] == 0


def test_figures_of_real_bases(rfft: Callable[..., str], run: Path, clip: Path, tmp_path: Path) -> None:
    """CLIP score, PickScore, FID and fidelity of both states, and the ranking of these and a third model."""
    measured = [f"evaluate.clip={clip}", f"evaluate.pickscore={clip}", "evaluate.fid=clip"]
    few = ["evaluate.fidelity=true", "evaluate.max_attempts=1", "evaluate.probe=null", "evaluate.judge=null"]
    rfft("evaluate", run, *measured, *few)
    summary = json.loads((run / "summary.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    for state in STATES:
        found = summary[state]
        assert found["fid"] > 0 and found["fid_space"] == "clip" and 5 < found["product_psnr"] < 60
        scores = evaluation[state]["scores"]
        assert set(scores) == {"clip_score", "pickscore", "product_psnr", "product_ssim"}
        for name, values in scores.items():
            assert len(values) == 12 and found[name] == pytest.approx(np.mean(values), rel=1e-5)
        # One network of random weights for both, so that they differ by its scale alone.
        scale = math.exp(CLIPModel.from_pretrained(clip).logit_scale.item()) / 100
        expected = scale * np.array(scores["clip_score"])
        np.testing.assert_allclose(np.maximum(scores["pickscore"], 0), expected, rtol=1e-4, atol=1e-5)
    assert summary["base"]["pickscore"] != summary["tuned"]["pickscore"]

    plain = ["run.name=engineered", f"run.out={tmp_path}", *measured, *few]
    words = "evaluate.quality_words=a sharp photo, high quality"
    told = rfft("evaluate", run / "config.yaml", *plain, words, "evaluate.negative_prompt=floating")
    assert "the base model" in told and "PickScore" in told and "“floating” was every negative" in told
    assert "nothing was trained" in (tmp_path / "engineered/report.html").read_text()
    engineered = json.loads((tmp_path / "engineered/summary.json").read_text())
    assert list(engineered) == ["base"] and engineered["base"]["clip_score"] != summary["base"]["clip_score"]
    cells = json.loads((tmp_path / "engineered/evaluation.json").read_text())["cells"]
    assert cells[0]["prompt"] == evaluation["cells"][0]["prompt"]  # judged by what was asked
    assert cells[0]["quality_words"] == "a sharp photo, high quality"

    rfft("compare", tmp_path / "engineered", run, "--out", tmp_path / "both", "--tie", "0.01")
    lines = (tmp_path / "both/comparison.md").read_text().splitlines()
    rows = [line.split(" | ")[:2] for line in lines[2:5]]
    assert rows == [["| base", "base"], ["| engineered", "prompt engineering"], ["| small", "cc, beta 0.02"]]
    assert "PickScore" in lines[0] and "place" not in lines[0]
    ranking = [line for line in lines[7:] if line.startswith("| ")]
    assert {line.split(" | ")[0] for line in ranking[2:]} == {"| base", "| engineered", "| small"}
    rates = [float(line.split(" | ")[1].removesuffix(" %")) for line in ranking[2:]]
    assert rates == sorted(rates, reverse=True) and sum(rates) == pytest.approx(150, abs=0.2)
    assert any(line.startswith("- CLIP score: ") for line in lines)


def test_a_training_run_is_not_taken_for_a_base_model(run: Path, config: Config) -> None:
    config.run.out = str(run.parent)
    with pytest.raises(UserError, match="is a training run"):
        evaluate_base(config)


def test_counters_of_the_training_stay(rfft: Callable[..., str], run: Path) -> None:
    (run / "summary.json").write_text(json.dumps({"seconds": 12.5, "grad_samples": 16}))
    rfft("evaluate", run, "evaluate.count=1", "evaluate.prompts_per_product=1", "evaluate.probe=null")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["seconds"], summary["grad_samples"]) == (12.5, 16)
    assert "alignment" not in summary["base"]


def test_the_base_of_a_run_is_the_untrained_model(
    rfft: Callable[..., str], run: Path, config: Config
) -> None:
    rfft("evaluate", run)
    assert store.recorded(run, "base") == evaluator_of(config)().metrics


def figures_of(alignment: float, diversity: float) -> dict[str, Any]:
    return {"alignment": alignment, "diversity": diversity}


def test_guardrails() -> None:
    base = figures_of(0.8, 0.3)
    assert store.guardrails(base, figures_of(0.73, 0.28), 0.9, 0.9) == []
    assert store.guardrails(base, figures_of(0.68, 0.1), 0.9, 0.9) == [
        "alignment fell to 85% of the base model's, below the 90% allowed",
        "diversity fell to 33% of the base model's, below the 90% allowed",
    ]
    assert store.guardrails({}, {}, 0.9, 0.9) == []


def test_guardrails_without_a_probe() -> None:
    """CLIP score stands for alignment; where both are measured, alignment alone counts."""
    base, tuned = {"clip_score": 30.0}, {"clip_score": 24.0}
    told = ["CLIP score fell to 80% of the base model's, below the 90% allowed"]
    assert store.guardrails(base, tuned, 0.9, 0.9) == told
    aligned = figures_of(0.8, 0.3)
    assert store.guardrails(base | aligned, tuned | aligned, 0.9, 0.9) == []


def test_references_of_a_folder(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (40, 30 + i), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert reference_images(str(tmp_path), 16, 1320).shape == (4, 3, 16, 16)
    with pytest.raises(UserError, match=r"3\.png: 40 x 33 pixels are more than max_pixels=1319"):
        reference_images(str(tmp_path), 16, 1319)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png", format="EPS")  # Pillow would start Ghostscript for it
    with pytest.raises(UserError, match=r"0\.png: not a readable image"):
        reference_images(str(tmp_path), 16, 1320)
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="4 pictures at least"):
        reference_images(str(tmp_path), 16, 1320)
    with pytest.raises(UserError, match="adworld:nope: no such split; give adworld:train"):
        reference_images("adworld:nope", 64, 1320)
