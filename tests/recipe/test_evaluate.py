"""The grid on which models are compared, and what it leaves in a run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
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
from rfft.config.schema import Config, EvaluateConfig
from rfft.data.references import reference_images
from rfft.errors import UserError
from rfft.evaluation import painter, store
from rfft.evaluation.evaluator import Evaluator
from rfft.evaluation.guardrails import guardrails
from rfft.evaluation.runs import evaluate_base
from rfft.evaluation.validation import Validation, validation_config
from rfft.types import LABELS, Batch
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
    assert found.facts == {"images": 12, "not_finite": 0, "max_attempts": 3}
    assert evaluator.products.tolist() == [0, 0, 1, 1, 2, 2]  # two prompts each
    value = {name: metric["value"] for name, metric in metrics.items()}
    for network in ("rfnet", "judge"):
        verdicts = found.probabilities[network].argmax(-1)
        assert value[f"available_rate_{network}"] == pytest.approx(float((verdicts == 0).float().mean()))
        failures = [value[f"{label}_{network}"] for label in LABELS[1:]]
        assert value[f"available_rate_{network}"] + sum(failures) == pytest.approx(1)
    assert 1 <= value["attempts"] <= 3
    successes = [value[f"success_at_{k}"] for k in (1, 2, 3)]
    assert successes == sorted(successes)
    assert value["diversity"] > 0 and value["vendi"] >= 1 and value["colourfulness"] > 0
    assert {f"alignment_{name}" for name in ("surface", "place", "prop", "light")} <= metrics.keys()
    for name, metric in metrics.items():
        assert metric["low"] - 1e-9 <= metric["value"] <= metric["high"] + 1e-9, name


def test_the_grid_is_always_the_same(config: Config) -> None:
    first = evaluator_of(config)()
    config.run.seed = 7
    config.evaluate.batch_size = 5
    second = evaluator_of(config)()
    assert (first.images.int() - second.images.int()).abs().max() <= 1
    assert first.metrics["available_rate_rfnet"] == second.metrics["available_rate_rfnet"]


def test_props_count_only_where_asked_for(config: Config) -> None:
    evaluator = evaluator_of(config)
    asked = sum(sample.attributes["prop"] != "none" for sample in evaluator.samples)
    assert 0 < asked < len(evaluator.samples)
    for sample in evaluator.samples:
        sample.attributes["prop"] = "none"
    assert "alignment_prop" not in evaluator().metrics


def test_more_attempts_only_where_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the product's fidelity looked at in those: its metrics are those of the grid."""
    config.evaluate.fidelity = True
    evaluator = evaluator_of(config)
    painted: list[tuple[int, int]] = []
    original = evaluator.painter._batch
    monkeypatch.setattr(
        evaluator.painter, "_batch", lambda cells: (painted.extend(cells), original(cells))[1]
    )
    compared: list[int] = []
    monkeypatch.setattr(
        painter,
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

    evaluator.painter.verdicts.rfnets["rfnet"] = bright_is_available  # type: ignore[assignment]
    first = evaluator()
    evaluator.settings.only_accepted = True
    found = evaluator()
    before, after = (e.probabilities["rfnet"][..., 0] for e in (first, found))
    accepted, at_last = before > 0.5, after > 0.5
    assert accepted.any() and at_last.sum() > accepted.sum()
    assert torch.equal(after[accepted], before[accepted]) and (after >= before).all()
    same = (found.images == plain.images).flatten(2).all(dim=2)
    assert torch.equal(same, after == before) and not same[at_last & ~accepted].any()
    rate = found.metrics["available_rate_rfnet"]["value"]
    assert rate == pytest.approx(at_last.float().mean().item())
    assert found.metrics["attempts"] == first.metrics["attempts"]
    assert len(found.images.flatten(0, 1).flatten(1).unique(dim=0)) == 12


def test_pictures_that_are_not_finite(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN's argmax is 0, which is "available": it counts as refused, and in nothing that is measured."""
    evaluator = evaluator_of(config)
    whole = evaluator()
    paint = painter.paint_bare

    def broken(bundle: object, batch: Batch, *rest: Any) -> torch.Tensor:
        bare = paint(bundle, batch, *rest)  # type: ignore[arg-type]
        bare[torch.isin(batch.sample, torch.tensor(bad))] = torch.nan
        return bare

    monkeypatch.setattr(painter, "paint_bare", broken)
    bad = [1, 4]
    found = evaluator()
    assert found.facts["not_finite"] == 4
    for network, probabilities in found.probabilities.items():
        assert probabilities[[1, 4]].isnan().all()
        others = (probabilities[[0, 2, 3, 5]].argmax(-1) == 0).float()
        rate = found.metrics[f"available_rate_{network}"]["value"]
        assert rate == pytest.approx(float(others.sum()) / 12)
    assert all(math.isfinite(metric["value"]) for metric in found.metrics.values())
    assert found.metrics["diversity"] != whole.metrics["diversity"]
    bad = list(range(6))
    with pytest.raises(UserError, match="none of the 12 pictures of the tuned model"):
        evaluator()


def test_without_rfnet(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Its verdict is left out, and what needs it; one line says so."""
    config.reward.rfnet = None
    evaluator = Evaluator(config, build.build_bundle(config, "cpu"), None)
    assert capsys.readouterr().err.count("available rate, attempts and success are left out") == 1
    found = evaluator()
    assert list(found.probabilities) == ["judge"] and "available_rate_judge" in found.metrics
    assert not {"available_rate_rfnet", "attempts", "success_at_1"} & found.metrics.keys()
    config.evaluate.only_accepted = True
    with pytest.raises(UserError, match=r"evaluate\.only_accepted asks for RFNet's verdict"):
        Evaluator(config, build.build_bundle(config, "cpu"), None)


def test_evaluate_command(
    rfft: Callable[..., str], run_command: Callable[..., tuple[int, str, str]], run: Path, tmp_path: Path
) -> None:
    (run / "report.html").write_text("that of older metrics")
    shown = rfft("evaluate", run)
    assert "before and after" in shown and "available (RFNet)" in shown and "evaluation.json" in shown
    printed = shown.partition("before and after")[2].partition("step 2 evaluated")[0]
    assert max(map(len, printed.splitlines())) <= 80, "a terminal's width"
    assert "Same product, prompt and noise" in (run / "report.html").read_text()

    summary = json.loads((run / "summary.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert summary["steps"] == summary["checkpoint"] == 2
    assert summary["intervals"]["unit"] == "product" and summary["intervals"]["products"] == 3
    for state in STATES:
        assert summary[state]["metrics"] == evaluation[state]["metrics"]
        wanted = {"available_rate_rfnet", "diversity", "alignment", "kid", "attempts"}
        assert wanted <= summary[state]["metrics"].keys()
        assert len(evaluation[state]["probabilities"]["rfnet"]) == len(evaluation["cells"]) == 12
    assert summary["base"] != summary["tuned"]
    for name, change in summary["change"].items():
        before, after = (summary[state]["metrics"][name]["value"] for state in STATES)
        assert change["value"] == pytest.approx(after - before), name
        assert change["low"] - 1e-9 <= change["value"] <= change["high"] + 1e-9, name
    counts = summary["verdicts"]["rfnet"]
    assert counts["available_before"] + counts["fixed"] - counts["broken"] == pytest.approx(
        12 * summary["tuned"]["metrics"]["available_rate_rfnet"]["value"]
    )
    images = {state: store.pictures(run, state).first(12) for state in STATES}
    assert images["base"].shape == (12, 3, 64, 64)
    assert not torch.equal(images["base"], images["tuned"])
    with Image.open(run / "samples/before_after.png") as grid:
        assert grid.size[0] > 12 * 128
    assert not list(run.rglob("*.part"))

    # The grid of these metrics is the run's; another one's go elsewhere.
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, _, told = run_command("evaluate", run, "evaluate.count=1")
    assert code == 2 and told.splitlines()[-1] == (
        f"rfft: {run} was evaluated with evaluate.count=3, not 1: write what you ask for elsewhere, with "
        "--out FOLDER"
    )
    rfft("evaluate", run, "evaluate.count=1", "evaluate.max_attempts=1", "--out", tmp_path / "one")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    other = json.loads((tmp_path / "one/summary.json").read_text())
    assert other["base"]["images"] == 4 and other["checkpoint"] == 2
    assert "low" not in other["base"]["metrics"]["available_rate_rfnet"]  # one product has no interval
    assert {"config.yaml", "report.html", "evaluation.json"} <= {
        path.name for path in (tmp_path / "one").iterdir()
    }


def test_checkpoints_are_chosen(
    rfft: Callable[..., str], run_command: Callable[..., tuple[int, str, str]], run: Path, config: Config
) -> None:
    """By default what the run exported; no other one's metrics take the place of its own."""
    few = [
        "evaluate.count=2",
        "evaluate.prompts_per_product=1",
        "evaluate.max_attempts=1",
        "evaluate.probe=null",
    ]
    bundle = build.build_bundle(config, "cpu")
    checkpoints = Checkpoints(run / "checkpoints", keep=2)
    checkpoints.save_best(0.5, 1, {"adapter": bundle.adapter_state_dict()}, {})  # as it began
    (run / "summary.json").write_text(json.dumps({"steps": 2, "checkpoint": 1}))
    assert "step 1 evaluated" in rfft("evaluate", run, *few)  # after a stop at a guardrail
    summary = json.loads((run / "summary.json").read_text())
    assert summary["checkpoint"] == 1 and summary["steps"] == 2
    assert summary["change"]["colourfulness"]["value"] == 0 and summary["verdicts"]["rfnet"]["fixed"] == 0
    rfft("evaluate", run, *few, "--best")  # the same one

    for choice, message in (
        (
            ["--step", 2],
            "has the metrics of step 1, not of step 2: write what you ask for elsewhere, with --out",
        ),
        (["--step", 7], "no checkpoint of step 7; there are those of step 1, 2: --step N"),
        (["--step", 2, "--best"], "--best and --step name two checkpoints"),
    ):
        code, _, told = run_command("evaluate", run, *few, *choice)
        assert code == 2 and message in told.splitlines()[-1], told
    assert "step 2 evaluated" in rfft("evaluate", run, *few, "--step", 2, "--out", run / "last")
    assert json.loads((run / "last/summary.json").read_text())["change"]["colourfulness"]["value"] != 0

    folders = []
    for choice in ([], ["--best"], ["--step", 2]):
        code, told, _ = run_command("export", run, *choice)
        assert code == 0
        folders.append(Path(told.strip()))
    assert folders[0] == folders[1] == run / "export/diffusers" and folders[2].name == "diffusers-step-2"
    weights = [folder.joinpath("pytorch_lora_weights.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]
    cards = [(folder / "README.md").read_text() for folder in folders]
    assert "## Metrics" in cards[0] and "## Metrics" not in cards[2]  # which are of other weights


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
        patched.setattr(painter, "paint_bare", no_memory)
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
        found = store.values(summary[state])
        assert found["fid"] > 0 and summary[state]["fid_space"] == "clip" and 5 < found["product_psnr"] < 60
        scores = evaluation[state]["scores"]
        assert set(scores) == {"clip_score", "pickscore", "product_psnr", "product_ssim"}
        for name, values in scores.items():
            assert len(values) == 12 and found[name] == pytest.approx(np.mean(values), rel=1e-5)
        # One network of random weights for both, so that they differ by its scale alone.
        scale = math.exp(CLIPModel.from_pretrained(clip).logit_scale.item()) / 100
        expected = scale * np.array(scores["clip_score"])
        np.testing.assert_allclose(np.maximum(scores["pickscore"], 0), expected, rtol=1e-4, atol=1e-5)
    assert summary["change"]["pickscore"]["value"] != 0 and "low" not in summary["change"]["fid"]

    plain = ["run.name=engineered", f"run.out={tmp_path}", *measured, *few]
    words = "evaluate.quality_words=a sharp photo, high quality"
    told = rfft("evaluate", run / "config.yaml", *plain, words, "evaluate.negative_prompt=floating")
    assert "the base model" in told and "PickScore" in told and "“floating” was every negative" in told
    assert "nothing was trained" in (tmp_path / "engineered/report.html").read_text()
    engineered = json.loads((tmp_path / "engineered/summary.json").read_text())
    assert "tuned" not in engineered
    clip_scores = [found["base"]["metrics"]["clip_score"] for found in (engineered, summary)]
    assert clip_scores[0] != clip_scores[1]
    cells = json.loads((tmp_path / "engineered/evaluation.json").read_text())["cells"]
    assert cells[0]["prompt"] == evaluation["cells"][0]["prompt"]  # judged by what was asked
    assert engineered["base"]["quality_words"] == "a sharp photo, high quality"

    rfft("compare", tmp_path / "engineered", run, "--out", tmp_path / "both", "--tie", "0.01")
    lines = (tmp_path / "both/comparison.md").read_text().splitlines()
    rows = [line.split(" | ")[:2] for line in lines[2:5]]
    assert rows == [
        ["| base", "base"],
        ["| engineered", "prompt engineering"],
        ["| small", "RFFT, CC, beta 0.02"],
    ]
    assert "PickScore" in lines[0] and "place" not in lines[0]
    changes = [line for line in lines if line.startswith(("| engineered | ", "| small | "))][2:4]
    assert all("to +" in line or "to -" in line for line in changes)  # intervals of paired differences
    start = next(i for i, line in enumerate(lines) if line.startswith("Which picture of a prompt PickScore"))
    ranking = [line for line in lines[start:] if line.startswith("| ")]
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
    assert "alignment" not in summary["base"]["metrics"]


def test_the_base_of_a_run_is_the_untrained_model(
    rfft: Callable[..., str], run: Path, config: Config
) -> None:
    rfft("evaluate", run)
    recorded = store.recorded(run, "base")
    assert recorded and recorded["metrics"] == evaluator_of(config)().metrics


def test_guardrails() -> None:
    base, settings = {"alignment": 0.8, "diversity": 0.3}, EvaluateConfig()
    assert guardrails(base, {"alignment": 0.73, "diversity": 0.28}, settings) == []
    assert guardrails(base, {"alignment": 0.68, "diversity": 0.1}, settings) == [
        "alignment fell to 85% of the base model's, below the 90% allowed",
        "diversity fell to 33% of the base model's, below the 90% allowed",
    ]
    assert guardrails({}, {}, settings) == []


def test_guardrails_without_a_probe() -> None:
    """CLIP score stands for alignment; where both are measured, alignment alone counts."""
    base, tuned, settings = {"clip_score": 30.0}, {"clip_score": 24.0}, EvaluateConfig()
    told = ["CLIP score fell to 80% of the base model's, below the 90% allowed"]
    assert guardrails(base, tuned, settings) == told
    aligned = {"alignment": 0.8}
    assert guardrails(base | aligned, tuned | aligned, settings) == []


def test_validation_shares_nothing_with_the_report(
    config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config.evaluate.max_attempts = 4
    chosen = validation_config(config)
    assert (chosen.evaluate.products, chosen.evaluate.max_attempts) == ("adworld:val", 1)
    assert [build.reference_source(c) for c in (chosen, config)] == ["adworld:val", "adworld:test"]
    config.evaluate.products = "adworld:val"
    with pytest.raises(UserError, match="what chooses the best checkpoint must not be what is reported"):
        validation_config(config)
    config.evaluate.reference = "adworld:test"
    with pytest.raises(UserError, match=r"evaluate\.reference=adworld:test is of another split than"):
        build.reference_source(config)

    config.evaluate.products, config.evaluate.reference = "adworld:test", None
    test = evaluator_of(config)
    validation = Validation(config, test.painter.bundle, test)
    names = [{cell["product"] for cell in found.cells()} for found in (test, validation.evaluator)]
    assert all(names) and not names[0] & names[1] and "are among" not in capsys.readouterr().err

    # Another network's choice does not go on from this one's.
    store.write_json(tmp_path / "validation.json", validation.grid | {"base": {"metrics": {}}})
    assert validation.base(tmp_path) == {"metrics": {}}
    validation.settings = replace(validation.settings, monitor="another")
    with pytest.raises(UserError, match="was validated with evaluate.monitor=null, not another: bring that"):
        validation.base(tmp_path)

    for folder, letters in (("test", "abc"), ("val", "bcd")):  # b's and c's pictures are in both
        (tmp_path / folder).mkdir()
        for i, letter in enumerate(letters):
            picture = Image.new("RGBA", (40, 30), (60 * ord(letter) % 256, 0, 0, 255))
            picture.save(tmp_path / folder / f"{i}.png")
    (tmp_path / "prompts.json").write_text('[{"prompt": "a park", "negative_prompt": ""}]')
    for grid, folder in ((config.evaluate, "test"), (config.evaluate.validation, "val")):
        grid.products, grid.prompts = str(tmp_path / folder), str(tmp_path / "prompts.json")
    config.evaluate.validation.count = 3
    on_disk = Evaluator(config, test.painter.bundle, None, test.networks)
    Validation(config, test.painter.bundle, on_disk)
    assert "warning: 2 of the products of evaluate.validation.products are among" in capsys.readouterr().err


def test_references_of_a_folder(tmp_path: Path) -> None:
    def read(source: object, size: int, max_pixels: int) -> torch.Tensor:
        return torch.cat([*reference_images(str(source), size, max_pixels)])

    for i in range(4):
        Image.new("RGB", (40, 30 + i), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert read(tmp_path, 16, 1320).shape == (4, 3, 16, 16)
    with pytest.raises(UserError, match=r"3\.png: 40 x 33 pixels are more than max_pixels=1319"):
        read(tmp_path, 16, 1319)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png", format="EPS")  # Pillow would start Ghostscript for it
    with pytest.raises(UserError, match=r"0\.png: not a readable image"):
        read(tmp_path, 16, 1320)
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="4 pictures at least"):
        read(tmp_path, 16, 1320)
    with pytest.raises(UserError, match="adworld:nope: no such split; give adworld:train"):
        read("adworld:nope", 64, 1320)
