"""What W&B and TensorBoard are given, read back from the files of offline runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from google.protobuf.message import DecodeError
from PIL import Image

from rfft.adworld import products
from rfft.evaluation.tracked import COLUMNS, best_of
from rfft.training import job
from rfft.training.lineage import inputs
from rfft.training.tracking import Tracker
from rfft.types import LABELS
from tools.wandb_records import OfflineRun, find_offline_runs, read_table, records

Rfft = Callable[..., tuple[int, str]]
GRID = (
    *("evaluate.count=2", "evaluate.prompts_per_product=1", "evaluate.max_attempts=2"),
    *("evaluate.validation.count=1", "evaluate.validation.prompts_per_product=1"),
    *("evaluate.seeds=2", "data.count=4", "trainer.sample_every=0"),
)
CONFIG: dict[str, Any] = {"tracker": {"project": "p", "group": None, "tags": []}, "run": {"name": "n"}}


def finished_runs(run: Path, seconds: float = 30) -> list[OfflineRun]:
    """W&B's service goes on writing records after finish(), until it has written the run's exit."""
    until = time.monotonic() + seconds
    while not all(map(is_written, (run / "wandb").glob("offline-run-*"))):
        assert time.monotonic() < until, f"{run} has no end"
        time.sleep(0.1)
    return find_offline_runs(run)


def is_written(folder: Path) -> bool:
    try:
        return any(record.HasField("exit") for file in folder.glob("*.wandb") for record in records(file))
    except DecodeError:  # half a record
        return False


@pytest.fixture
def rfft(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., tuple[int, str, str]],
) -> Iterator[Rfft]:
    """rfft(*overrides) -> (exit code, stderr) of `rfft train`, in an empty folder, without a key of W&B."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(products, "REFERENCE_IMAGES", 8)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def run(*overrides: str) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        code, _, told = run_command("train", world / "config.yaml", *GRID, *overrides)
        return code, told

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def metrics_file(run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]


def evaluation_table(run: OfflineRun) -> list[dict[str, Any]]:
    (artifact,) = [a for a in run.artifacts if a.type == "run_table" and a.name.endswith("-evaluation")]
    return read_table(artifact, "evaluation")


def test_an_offline_run_from_one_end_to_the_other(rfft: Rfft, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = ["tracker.kind=wandb", "tracker.project=ads", "tracker.group=trials", "tracker.tags=[a,b]"]
    code, told = rfft(*settings, "trainer.sample_every=2", "evaluate.every=1")
    assert code == 0 and "failed" not in told, told
    assert "wandb sync runs/small/wandb" in told
    (found,) = finished_runs(Path("runs/small"))
    run = found.run
    assert (run.project, run.run_group, list(run.tags)) == ("ads", "trials", ["a", "b"])
    assert (run.display_name, run.resume) == ("small", True)
    assert json.loads(Path("runs/small/tracker.json").read_text()) == {"wandb": run.run_id}
    paths = [Path(entry.local_path) for artifact in found.artifacts for entry in artifact.manifest.contents]
    assert paths and all(path.is_relative_to(tmp_path / "runs" / "small") for path in paths)

    # Settings keep their types.
    written = yaml.safe_load(Path("runs/small/config.yaml").read_text())
    assert found.config["model.train"] == ["denoiser_lora"] and found.config["model.tiny_vae"] is None
    assert found.config["optimizer.lr"] == 1e-5 and found.config["ema.enabled"] is False
    assert found.config["data.image_size"] == written["data"]["image_size"]

    # All rows are there, by step; the summary has the best of each metric by its own direction.
    for name in ("train/f_ac", "val/diversity"):
        expected = [(row["step"], row[name]) for row in metrics_file("small") if name in row]
        assert dict(found.rows(name)) == pytest.approx(dict(expected)) and expected
    assert found.metrics["train/*"].step_metric == found.metrics["val/attempts"].step_metric == "step"
    for name, best in (("available_rate_judge", "max"), ("size_mismatch_rfnet", "min"), ("attempts", "min")):
        values = [value for _, value in found.rows(f"val/{name}")]
        assert len(values) == 3 and found.summary[f"val/{name}"] == {
            best: getattr(np, best)(values),
            "last": values[-1],
        }

    # What the exported weights reach, as plain columns.
    summary = json.loads(Path("runs/small/summary.json").read_text())
    base, tuned = (summary[state]["metrics"]["diversity"]["value"] for state in ("base", "tuned"))
    assert found.summary["base/diversity"] == base and found.summary["tuned/diversity"] == tuned
    assert found.summary["change/diversity"] == pytest.approx(tuned - base)
    assert found.metrics["tuned/*"].options.hidden

    (samples,) = [row["samples"] for row in found.history if "samples" in row and row["step"] == 2]
    assert len(samples["captions"]) == samples["count"] == 4

    names = {a.name: a for a in found.artifacts if a.type in ("model", "dataset")}
    used = {name for name, artifact in names.items() if artifact.use_after_commit}
    assert used == {"bundle-pipeline0", "rfnet-rfnet", "products-adworld-train", "products-adworld-test"}
    (lora,) = names.keys() - used
    assert lora == "small-lora" and json.loads(names[lora].metadata)["steps"] == 2
    files = {entry.path: Path(entry.local_path) for entry in names[lora].manifest.contents}
    assert files["pytorch_lora_weights.safetensors"].is_relative_to(Path("runs/small/export").resolve())
    contents = json.loads(Path(names["rfnet-rfnet"].manifest.contents[0].local_path).read_text())
    assert len(contents["files"]["model.safetensors"]) == 64


def test_runs_are_joined_by_the_keys_of_their_pictures(rfft: Rfft) -> None:
    """Two runs of one grid have the same keys; a run without a judge has the same columns."""
    pytest.importorskip("wandb")
    short = ["tracker.kind=wandb", "trainer.steps=1"]
    for settings in (["run.name=a"], ["run.name=b", "optimizer.lr=0.1", "evaluate.judge=null"]):
        code, told = rfft(*short, *settings)
        assert code == 0, told
    tables = {}
    for name in "ab":
        (run,) = finished_runs(Path("runs", name))
        rows = evaluation_table(run)
        assert len(rows) == 4 and tuple(rows[0]) == COLUMNS
        tables[name] = {row["key"]: row for row in rows}
    assert tables["a"].keys() == tables["b"].keys() and len(tables["a"]) == 4
    recorded = json.loads(Path("runs/a/evaluation.json").read_text())
    for row, cell, before, after in zip(
        tables["a"].values(),
        recorded["cells"],
        *(recorded[state]["probabilities"]["judge"] for state in ("base", "tuned")),
        strict=True,
    ):
        assert (row["product"], row["prompt"], row["seed"]) == (cell["id"], cell["prompt"], cell["seed"])
        assert (row["available_base_judge"], row["available_tuned_judge"]) == (before[0], after[0])
        accepted = [p.index(max(p)) == 0 for p in (before, after)]
        assert row["base_judge"] == LABELS[before.index(max(before))].replace("_", " ")
        assert row["change_judge"] == {(0, 1): "fixed", (1, 0): "broken"}.get(tuple(accepted), "same")
    for key, row in tables["b"].items():
        assert row["tuned_judge"] is None and row["tuned_rfnet"]
        same, other = (np.asarray(Image.open(row[state])) for state in ("base", "tuned"))
        assert np.array_equal(same, np.asarray(Image.open(tables["a"][key]["base"])))
        assert not np.array_equal(other, np.asarray(Image.open(tables["a"][key]["tuned"])))


def test_a_resumed_run_goes_on_in_the_same_one(rfft: Rfft) -> None:
    pytest.importorskip("wandb")
    for steps in (1, 2):
        code, told = rfft("tracker.kind=wandb", f"trainer.steps={steps}")
        assert code == 0 and "failed" not in told, told
    first, second = finished_runs(Path("runs/small"))
    assert first.run.run_id == second.run.run_id and second.run.resume
    assert [step for step, _ in first.rows("train/f_ac") + second.rows("train/f_ac")] == [1, 2]
    assert [step for step, _ in first.rows("eval/attempts")] == [0, 1]
    assert [step for step, _ in second.rows("eval/attempts")] == [2]  # the base model once
    assert first.artifacts[0].digest == second.artifacts[0].digest


def test_an_evaluation_goes_on_in_its_run(
    rfft: Rfft, world: Path, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    """`rfft evaluate RUN` logs into the run's own one; a base model alone has one of its own."""
    pytest.importorskip("wandb")
    settings = ("tracker.kind=wandb", *GRID, "evaluate.reference=null", "evaluate.probe=null")
    code, told = rfft(*settings, "trainer.steps=1")
    assert code == 0, told
    for command in (["runs/small"], [world / "config.yaml", *settings, "run.name=alone"]):
        code, _, told = run_command("evaluate", *command)
        assert code == 0 and "failed" not in told, told
    trained, again = finished_runs(Path("runs/small"))
    assert trained.run.run_id == again.run.run_id
    assert evaluation_table(again)[0]["tuned_judge"] and again.summary["tuned/attempts"]
    (alone,) = finished_runs(Path("runs/alone"))
    assert {row["key"] for row in evaluation_table(alone)} == {
        row["key"] for row in evaluation_table(trained)
    }
    assert evaluation_table(alone)[0]["tuned"] is None and "tuned/attempts" not in alone.summary


def test_the_networks_that_a_run_leaves_are_the_same_artifact_as_its_users_input(tmp_path: Path) -> None:
    """RFNet's training logs an artifact; a run that uses its folder names the same one."""
    folder = tmp_path / "rfnet_mine" / "rfnet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for tracked, name in ((False, "rfnet-rfnet"), (True, "rfnet_mine-rfnet")):
        if tracked:
            (folder.parent / "tracker.json").write_text('{"wandb": "0"}')
        (item,) = inputs({"reward": {"rfnet": str(folder)}})
        assert item.name == name and (item.folder == folder) == tracked


def test_inputs_are_described_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "stool.png").write_bytes(b"1")
    (tmp_path / "prompts.json").write_text("[]")
    config = {
        "model": {"bundle": "rf-tiny", "controlnet": None},
        "data": {"products": str(tmp_path / "photos"), "prompts": str(tmp_path / "prompts.json")},
        "evaluate": {"products": "adworld:val", "prompts": None},
    }
    found = {item.name: item.contents for item in inputs(config)}
    assert found.keys() == {
        "bundle-rf-tiny",
        "products-photos",
        "prompts-prompts.json",
        "products-adworld-val",
    }
    assert "unet/config.json" in found["bundle-rf-tiny"]["files"]
    assert found["products-photos"]["files"] == 1
    (tmp_path / "photos" / "stool.png").write_bytes(b"22")
    assert inputs(config)[1].contents["listing"] != found["products-photos"]["listing"]
    del config["evaluate"]["products"], config["model"]
    for source, holdout, names in (
        ("adworld:train", None, {"products-adworld-train", "products-adworld-test"}),
        (str(tmp_path / "photos"), 0.2, {"products-photos"}),
    ):
        config["data"] |= {"products": source, "holdout": holdout, "prompts": None}
        assert {item.name for item in inputs(config)} == names


@pytest.mark.parametrize(
    ("name", "best"),
    [
        *(("available_rate_rfnet", "max"), ("alignment_prop", "max"), ("success_at_1", "max")),
        *(("attempts", "min"), ("kid", "min"), ("fid", "min"), ("clip_score", "max"), ("loss", "min")),
        *(("shape_hallucination_judge", "min"), ("unavailable_rfnet", "min"), ("diversity", "max")),
        *(("ap_available", "max"), ("precision_space_mismatch", "max")),  # of RFNet's own training
    ],
)
def test_which_way_is_better(name: str, best: str) -> None:
    assert best_of(name) == best


def test_tensorboard(rfft: Rfft) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    code, told = rfft("trainer.sample_every=1", "tracker.kind=tensorboard", "tracker.project=elsewhere")
    assert code == 0, told
    events = EventAccumulator("runs/small/tensorboard").Reload()
    logged = [event.value for event in events.Scalars("train/f_ac")]
    assert logged == pytest.approx(
        [row["train/f_ac"] for row in metrics_file("small") if "train/f_ac" in row]
    )
    assert len(events.Images("samples")) > 0
    assert events.Images("evaluation/base") and events.Images("evaluation/tuned")
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["model.train"].string_value == '["denoiser_lora"]'
    assert settings["trainer.batch_size"].number_value == 2 and settings["ema.enabled"].bool_value is False
    assert settings["model.tiny_vae"].string_value == "null"
    assert {path.name for path in Path("runs/small").iterdir() if path.is_dir()} == {
        *("checkpoints", "export", "replicates", "samples", "tensorboard")
    }


def test_a_tracker_that_dies_is_given_up_once(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def dead(*_: object, **__: object) -> None:
        raise ConnectionError("unreachable [/log]")  # rich would take that for a tag, and raise in turn

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", dead)
    code, told = rfft("evaluate.enabled=false", "tracker.kind=tensorboard")
    assert code == 0 and len(metrics_file("small")) == 2
    assert told.count("tensorboard failed (unreachable [/log])") == 1


def test_wandb_that_was_given_up_is_not_to_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def full(*_: object, **__: object) -> None:
        (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", full)
    Tracker("wandb", tmp_path, CONFIG).close()
    told = capsys.readouterr().err
    assert told.count("wandb failed (disk full)") == 1 and "wandb sync" not in told


def test_a_tracker_that_is_not_installed(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    code, told = rfft("tracker.kind=wandb")
    assert code == 2 and "pip install rfft[wandb]" in told
    assert not Path("runs").exists()


def test_no_secret_goes_to_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_MODE", "offline")
    Tracker("wandb", tmp_path, CONFIG | {"a": [1, None]}).close()
    (found,) = finished_runs(tmp_path)
    assert found.config["a"] == [1, None]
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"0123456789" * 4 in f.read_bytes()]
