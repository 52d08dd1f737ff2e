"""Training RFNet through the real command line: what it leaves, resume, use as a reward, evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from rfft.adworld.draw import draw_dataset
from rfft.feedback.folder import read_feedback
from rfft.feedback.votes import Picture, Vote, write_rows
from rfft.feedback.votes import rows as rows_of
from rfft.rewards.rfnet import RFNet
from rfft.rfnet import evaluate, learner, validation
from rfft.training import job
from rfft.types import COARSE_LABELS, LABELS
from tests.rows import rows as metrics_rows
from tests.toys import no_memory

Rfft = Callable[..., tuple[int, str]]
TINY = Path(__file__).parents[2] / "configs" / "rfnet_tiny.yaml"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "rfft")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    draw_dataset(folder / "train", 24, seed=0, workers=1)
    draw_dataset(folder / "val", 11, seed=0, split="val", workers=1)
    return folder


@pytest.fixture
def settings(world: Path, scenes: Path, tmp_path: Path) -> Path:
    """configs/rfnet_tiny.yaml, smaller still: random map networks, 32 px, four steps of four pictures."""
    config = yaml.safe_load(TINY.read_text())
    config["run"] = {"name": "small"}
    config["rfnet"] |= {"image_size": 32, "width": 16, "heads": 2, "dropout": 0.1}
    config["rfnet"]["image_encoder"] |= {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config["rfnet"]["text_encoder"] |= {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32}
    config["rfnet"]["text_encoder"]["dropout"] = 0.1
    config["data"] |= {"train": [str(scenes / "train")], "validation": [str(scenes / "val")]}
    config["data"]["image_size"] = 32
    config["maps"] |= {kind: str(world / kind) for kind in ("depth", "saliency")}
    config["optimizer"]["warmup"] = 2
    config["trainer"] |= {"batch_size": 4, "steps": 4, "mixed_precision": "no", "validate_every": 2}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


@pytest.fixture
def rfft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., tuple[int, str, str]]
) -> Iterator[Rfft]:
    """rfft(*arguments) -> (exit code, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        code, _, told = run_command(*arguments)
        return code, told

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def rows(run: str) -> list[dict[str, float]]:
    return metrics_rows(Path("runs", run))


def metrics(folder: str) -> dict:
    return json.loads(Path(folder, "evaluation.json").read_text())


def test_a_run_from_one_end_to_the_other(rfft: Rfft, settings: Path, scenes: Path) -> None:
    code, told = rfft("rfnet", "train", str(settings))
    assert code == 0, told
    run = Path("runs/small")
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {
        *("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "evaluation.json"),
        *("confusion.png", "checkpoints/step-000004/rfnet.safetensors"),
        *("rfnet/config.json", "rfnet/model.safetensors", "rfnet/tokenizer.json"),
    } <= left
    assert not any(".part" in name for name in left)
    assert [row["step"] for row in rows("small")] == [1, 2, 2, 3, 4, 4]
    assert [row["train/lr"] for row in rows("small") if "train/lr" in row] == [5e-4, 1e-3, 1e-3, 1e-3]
    aps = {row["step"]: row["eval/ap_available"] for row in rows("small") if "eval/loss" in row}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ap_available"] == max(aps.values()) == aps[summary["best_step"]]
    assert (summary["steps"], summary["pictures"]) == (4, 16)
    assert "AP(available)" in told and "shape hallucination" in told and "runs/small/rfnet" in told

    # The same metrics again, from the exported folder alone and through the run.
    validated = metrics("runs/small")
    assert tuple(validated["classes"]) == LABELS and validated["pictures"] == 11
    code, told = rfft("rfnet", "evaluate", "runs/small", "--data", str(scenes / "val"))
    assert code == 0 and "macro F1" in told, told
    again = metrics("runs/small")
    assert again["confusion"] == validated["confusion"]
    assert again["loss"] == pytest.approx(validated["loss"], rel=1e-5)
    assert sum(map(sum, again["confusion"])) == 11


def test_an_embedded_network_is_evaluated(rfft: Rfft, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("rfnet", "evaluate", "rf-tiny-rfnet", "--data", str(scenes / "val"), "--no-known-maps")
    code, told = rfft(*arguments)
    assert code == 2 and "say with --out where the metrics go" in told
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "predict", no_memory)
        code, told = rfft(*arguments, "--out", "nothing")
    assert code == 2 and "rfft: out of memory (CUDA out of memory). Try fewer" in told, told
    code, told = rfft(*arguments, "--out", "metrics", "--maps-cache", "cache")
    assert code == 0, told
    assert metrics("metrics")["accuracy"] > 0.4  # a guess has 0.2
    assert Path("metrics/confusion.png").exists() and list(Path("cache").rglob("*.png"))


def test_votes_are_trained_on(rfft: Rfft, settings: Path, scenes: Path) -> None:
    """From a network's weights on with what three people said, and judged on the same."""
    pictures, votes = {}, []
    for record in read_feedback(scenes / "train"):
        image, product = record.files()
        pictures[record.name] = Picture(record.name, image, product, record.caption)
        for rater, label in enumerate((LABELS[record.label], LABELS[record.label], LABELS[0])):
            votes.append(Vote("labels", record.name, f"rater {rater}", {"labels": [label]}))
    write_rows(Path("votes.jsonl"), rows_of(votes, pictures))
    store = "votes:votes.jsonl"
    train = "rfnet", "train", str(settings), "trainer.steps=2", "rfnet.drop=[d,s]"  # no maps to be made
    assert rfft(*train, "run.name=before")[0] == 0
    more = f"data.train=[{store}]", "data.validation=[]", "data.validation_share=0.5"
    code, told = rfft(*train, *more, "--from", "runs/before/rfnet")
    assert code == 0, told
    found = metrics("runs/small")
    assert 0 < found["pictures"] < 24 and 1 / 3 <= found["agreement_available"] <= 1
    code, told = rfft("rfnet", "evaluate", "runs/small", "--data", store)
    assert code == 0 and "of what people said" in told, told
    assert metrics("runs/small")["pictures"] == 24


def test_resumed_is_uninterrupted_bit_for_bit(rfft: Rfft, settings: Path) -> None:
    """With dropout, mirrored pictures, accumulation, and a validation that is not the first."""
    every = ["rfnet", "train", str(settings), "trainer.checkpoint_every=2", "trainer.accumulation=2"]
    for overrides in (
        ["run.name=whole", "trainer.steps=4"],
        ["run.name=parts", "trainer.steps=2"],
        ["run.name=parts", "trainer.steps=4"],
    ):
        code, told = rfft(*every, *overrides)
        assert code == 0, told
    assert rows("whole") == rows("parts")
    for name in (
        "checkpoints/step-000004/rfnet.safetensors",
        "rfnet/model.safetensors",
        "evaluation.json",
    ):
        assert Path("runs/whole", name).read_bytes() == Path("runs/parts", name).read_bytes(), name
    first = load_file("runs/whole/checkpoints/step-000002/rfnet.safetensors")
    last = load_file("runs/whole/checkpoints/step-000004/rfnet.safetensors")
    assert any(not torch.equal(tensor, last[name]) for name, tensor in first.items())


def test_a_signal_saves_and_stops(rfft: Rfft, settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In step 1, which is finished; in the validation after step 2, which is not."""
    same = ["rfnet", "train", str(settings), "trainer.checkpoint_every=100"]
    micro_batch, predict = learner.RFNetLearner.micro_batch, validation.predict
    judged: list[int] = []

    def in_a_step(self: learner.RFNetLearner, *rest: object) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return micro_batch(self, *rest)  # type: ignore[arg-type]

    def in_a_validation(*rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        found = predict(*rest)  # type: ignore[arg-type]
        judged.append(len(found[1]))
        return found

    for step, patch in (
        (1, (learner.RFNetLearner, "micro_batch", in_a_step)),
        (2, (validation, "predict", in_a_validation)),
    ):
        with monkeypatch.context() as disturbed:
            disturbed.setattr(*patch)
            code, told = rfft(*same)
        assert code == 75 and f"stopped after step {step}; the same command goes on" in told, told
        assert Path(f"runs/small/checkpoints/step-00000{step}/rfnet.safetensors").exists()
        assert [row["step"] for row in rows("small")] == list(range(1, step + 1))
    assert judged == [0]  # no picture more
    assert rfft(*same)[0] == 0
    assert rfft(*same, "run.name=undisturbed")[0] == 0
    assert rows("small") == rows("undisturbed")
    for name in ("rfnet/model.safetensors", "checkpoints/step-000004/rfnet.safetensors"):
        assert Path("runs/small", name).read_bytes() == Path("runs/undisturbed", name).read_bytes(), name


def test_a_coarse_network_without_depth_as_a_reward(rfft: Rfft, settings: Path, world: Path) -> None:
    code, told = rfft("rfnet", "train", str(settings), "objective.labels=coarse", "rfnet.drop=[d]")
    assert code == 0, told
    assert tuple(metrics("runs/small")["classes"]) == COARSE_LABELS
    network = RFNet.from_pretrained("runs/small/rfnet")
    assert (network.config.num_labels, network.config.drop) == (2, ["d"])
    assert not list(Path(settings.parent).rglob("made-depth-*"))
    few = ["data.count=2", "evaluate.count=2", "evaluate.seeds=1", "evaluate.max_attempts=1"]
    small = ["trainer.steps=1", "evaluate.prompts_per_product=1", "evaluate.reference=null"]
    small += ["evaluate.judge=rf-tiny-judge"]  # it reads captions with RFNet's tokenizer
    code, told = rfft(
        "train", str(world / "config.yaml"), "reward.rfnet=runs/small/rfnet", "run.name=tuned", *few, *small
    )
    assert code == 0, told
    found = json.loads(Path("runs/tuned/summary.json").read_text())["base"]["metrics"]
    assert "space_mismatch_rfnet" not in found and "space_mismatch_judge" in found
    rates = found["available_rate_rfnet"]["value"], found["unavailable_rfnet"]["value"]
    assert sum(rates) == pytest.approx(1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[nowhere]", "nowhere/label.txt: cannot be read"),
        ("maps.depth=nowhere", "nowhere: no such network"),
        ("rfnet.text_encoder.tokenizer=nowhere", "no tokenizer in nowhere"),
        ("rfnet.image_encoder.weights=nowhere", "encoder nowhere: neither a folder nor a hub id"),
        ("rfnet.image_size=36", "rfnet image_size 36 is not a multiple of 8"),
    ],
)
def test_a_mistake_leaves_nothing_behind(rfft: Rfft, settings: Path, override: str, message: str) -> None:
    code, told = rfft("rfnet", "train", str(settings), override)
    assert code == 2 and message in told
    assert not Path("runs").exists()


def test_a_checkpoint_that_this_machine_lacks(
    rfft: Rfft, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main process has found one; to begin anew beside it would train something else."""
    monkeypatch.setattr(job, "broadcast", lambda found: Path("elsewhere/step-000002"))
    code, told = rfft("rfnet", "train", str(settings))
    assert code == 2 and "rfft: elsewhere/step-000002 is not on this machine: give a run.out" in told


@pytest.mark.slow
def test_two_processes_validate_as_one(rfft: Rfft, settings: Path, scenes: Path, tmp_path: Path) -> None:
    """Batch statistics are each process's own, so the weights differ from one process's; the metrics hold."""
    two_processes(tmp_path, "rfnet", "train", str(settings), "trainer.steps=2")
    validated = metrics("runs/small")
    assert [row["step"] for row in rows("small")] == [1, 2, 2] and validated["pictures"] == 11
    assert json.loads(Path("runs/small/summary.json").read_text())["pictures"] == 2 * 4 * 2
    assert rfft("rfnet", "evaluate", "runs/small", "--data", str(scenes / "val"))[0] == 0
    assert metrics("runs/small")["confusion"] == validated["confusion"]
    assert metrics("runs/small")["loss"] == pytest.approx(validated["loss"], rel=1e-5)


@pytest.mark.slow
def test_from_shards_a_resume_is_exact_too(rfft: Rfft, settings: Path, scenes: Path) -> None:
    """Prepared with the networks' own maps, as maps.known=false asks."""
    config = yaml.safe_load(settings.read_text())
    networks = [f"--{kind}={config['maps'][kind]}" for kind in ("depth", "saliency")]
    for part in ("train", "val"):
        prepare = ["data", "prepare-rf1m", str(scenes / part), part, "--size=32", "--raw", "--shard-size=4"]
        code, told = rfft(*prepare, *networks, "--workers=1", "--no-known-maps")
        assert code == 0, told
    data = ["data.train=[train]", "data.validation=[val]"]
    every = ["rfnet", "train", str(settings), "trainer.checkpoint_every=2", "data.workers=1"]
    for overrides in (
        ["run.name=whole", "trainer.steps=4"],
        ["run.name=parts", "trainer.steps=2"],
        ["run.name=parts", "trainer.steps=4"],
    ):
        code, told = rfft(*every, *data, *overrides)
        assert code == 0, told
    assert rows("whole") == rows("parts")
    for name in ("checkpoints/step-000004/rfnet.safetensors", "evaluation.json"):
        assert Path("runs/whole", name).read_bytes() == Path("runs/parts", name).read_bytes(), name
    assert metrics("runs/whole")["pictures"] == 11

    code, told = rfft("rfnet", "evaluate", "runs/whole", "--data", "val", "--out", "again")
    assert code == 0, told
    assert metrics("again")["confusion"] == metrics("runs/whole")["confusion"]
    code, told = rfft(*every, "data.train=[train]", "data.validation=[]", "run.name=new")
    assert code == 2 and "name others for validation with data.validation" in told
    code, told = rfft(*every, *data, "maps.depth=rf-tiny-depth", "run.name=new")
    assert code == 2 and "prepare it with --no-known-maps --depth rf-tiny-depth" in told


@pytest.mark.slow
def test_two_processes_share_shards(rfft: Rfft, settings: Path, scenes: Path, tmp_path: Path) -> None:
    """The one shard of the validation is read by the first process; the second has nothing to judge."""
    for part, size in (("train", 12), ("val", 100)):
        options = ["--size=32", "--raw", f"--shard-size={size}", "--workers=1"]
        code, told = rfft("data", "prepare-rf1m", str(scenes / part), part, *options)
        assert code == 0, told
    data = ["data.train=[train]", "data.validation=[val]", "maps.known=true"]
    two_processes(tmp_path, "rfnet", "train", str(settings), "trainer.steps=2", *data)
    assert metrics("runs/small")["pictures"] == 11
    assert json.loads(Path("runs/small/summary.json").read_text())["pictures"] == 2 * 4 * 2


def two_processes(folder: Path, *arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, *TORCHRUN, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
