"""`rfft preference`, `rfft aesthetic` and what they teach, through the real command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import Picture, Vote
from rfft.rewards.people import load_aesthetic, load_pickscore
from rfft.training import loop
from tests.rows import rows as metrics_rows

Rfft = Callable[..., tuple[int, str]]
PICTURES = 16
ALL = "network.train=all"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright pictures are better than dark ones, in pairs, in Good/Same/Bad and by score."""
    folder = tmp_path_factory.mktemp("votes")
    opened = VoteStore(folder / "feedback.db", create=True)
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        noise = rng.integers(0, 100, (32, 32, 3)) + 150 * (i % 2)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")
    prompts = ["a park", "light", "a wall", "grey"]
    opened.add_pictures(
        Picture(str(i), folder / f"{i}.png", prompt=prompts[i // 2 % 4]) for i in range(PICTURES)
    )
    for i in range(PICTURES):
        other, bright = str((i + 1) % PICTURES), i % 2
        opened.add_vote(Vote("pairs", str(i), "ann", {"better": "left" if bright else "right"}, other))
        answer = {"overall": "good" if bright else "bad", "quality": "same"}
        opened.add_vote(Vote("gsb", str(i), "ann", answer, other))
        defects = [] if bright else ["floats"]
        opened.add_vote(Vote("scores", str(i), "ann", {"score": 5 if bright else 2, "defects": defects}))
    opened.close()
    return folder / "feedback.db"


@pytest.fixture
def rfft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., tuple[int, str, str]]
) -> Iterator[Rfft]:
    """rfft(*arguments) -> (exit code, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        code, _, told = run_command(*arguments)
        return code, told

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


SMALL = ("trainer.steps=4", "trainer.batch_size=4", "trainer.validate_every=2", "data.validation_share=0.5")


def test_preferences_from_votes_to_a_reward(rfft: Rfft, store: Path, clip: Path) -> None:
    tuned = (f"network.encoder={clip}", "network.train=all")
    code, told = rfft("preference", "train", "--data", store, *SMALL, *tuned)
    assert code == 0, told
    run = Path("runs/preference")
    found = json.loads((run / "evaluation.json").read_text())
    assert 0 <= found["accuracy"] <= 1 and found["dimensions"]["overall"]["pairs"] == found["pairs"]
    assert "accuracy of decided" in told and "runs/preference/preference" in told
    assert json.loads((run / "preference/config.json").read_text())["tie"] == found["tie"]
    scores = {row["step"]: row["eval/accuracy"] for row in metrics_rows(run) if "eval/loss" in row}
    assert json.loads((run / "summary.json").read_text())["accuracy"] == max(scores.values())

    reward = load_pickscore(str(run / "preference"))
    assert reward.score(torch.rand(2, 3, 40, 32), ["a park", "a wall"]).isfinite().all()
    code, told = rfft("preference", "evaluate", run, "--data", store)
    assert code == 0, told
    held = json.loads((run / "held_out.json").read_text())
    assert held["pairs"] == PICTURES and held["tie"] == found["tie"]

    code, told = rfft("preference", "train", "--data", store, *SMALL, *tuned, "optimizer.lr=0.5")
    assert code == 2 and "optimizer.lr is 0.0005 there, 0.5 here" in told.splitlines()[-1]


@pytest.mark.parametrize("several", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_resumed_run_is_an_uninterrupted_one(
    rfft: Rfft, store: Path, clip: Path, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels and one dimension, or kept features and two; dropout is drawn by step."""
    dimensions = "preference.dimensions={overall: park, quality: light}"
    what = [dimensions, "network.heads=2"] if several else ["network.train=all"]
    settings = [f"network.encoder={clip}", "trainer.checkpoint_every=2", "optimizer.schedule=drops", *what]
    command = ("preference", "train", "--data", store, *SMALL, *settings)
    code, told = rfft(*command, "run.name=whole")
    assert code == 0, told
    code, told = rfft(*command, "run.name=parts", "trainer.steps=2")
    assert code == 0, told
    code, told = rfft(*command, "run.name=parts")
    assert code == 0 and "goes on after step 2 of 4" in told, told
    weights = [
        load_file(f"runs/{name}/checkpoints/step-000004/network.safetensors") for name in ("whole", "parts")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert any(name.startswith("pictures.") for name in weights[0]) is not several


@pytest.mark.slow
def test_scores_from_votes_to_a_filter(rfft: Rfft, store: Path) -> None:
    """By the embedded encoder: what is bright is kept."""
    steps = ("trainer.steps=60", SMALL[1], "trainer.validate_every=60", SMALL[3], "optimizer.lr=0.01")
    code, told = rfft("aesthetic", "train", "--data", store, *steps, "network.width=32")
    assert code == 0, told
    run = Path("runs/aesthetic")
    found = json.loads((run / "evaluation.json").read_text())
    assert found["within_one"] == found["defects"]["floats"]["ap"] == 1
    network = run / "aesthetic"
    score = load_aesthetic(model=str(network)).score(torch.rand(1, 3, 32, 32), [""])
    assert 1 <= float(score) <= 5

    filtered = ("score", store.parent, "--out", "scores.csv", "--aesthetic", network)
    code, told = rfft(*filtered, "--at-least", 3.5, "--keep", "kept")
    assert code == 0 and "3.5 at least: 8 of 16 pictures" in told, told
    with open("scores.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    bright = {f"{i}.png" for i in range(1, PICTURES, 2)}
    assert {Path(line["picture"]).name for line in lines if line["accepted"] == "true"} == bright
    assert {path.name for path in Path("kept").iterdir()} == bright
    assert all((float(line["floats"]) > 0.5) == (line["accepted"] == "false") for line in lines)
    code, told = rfft(*filtered)
    assert code == 2 and "scores.csv" in told and "--out" in told


def test_mistakes_are_one_line(rfft: Rfft, store: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{\n")
    own = f"network.encoder={clip}"
    for arguments, message in {
        ("preference", "train"): "data.train is empty",
        ("preference", "train", "--data", "nowhere.db"): "nowhere.db: no store of votes",
        ("preference", "train", "--data", "nowhere.jsonl"): "nowhere.jsonl: not there",
        ("preference", "train", "--data", "broken.jsonl"): "broken.jsonl: no file of votes",
        ("preference", "train", "--data", store, "network.encoder=nowhere", ALL): "no tokenizer in nowhere",
        ("preference", "train", "--data", store, own): "set network.train=all",
        ("preference", "train", "--data", store, "network.heads=3"): "no multiple of network.heads=3",
        ("aesthetic", "train", "--data", store, "aesthetic.defects=[ugly]"): "names ugly: choose from floats",
        ("aesthetic", "evaluate", tmp_path, "--data", store): "no run of this training",
        ("score", store.parent, "--out", "x.csv"): "name the folder with --products",
        ("score", store.parent, "--out", "x.csv", "--aesthetic", "nowhere"): "nowhere: no such network",
        ("review", "correlate", tmp_path, "--store", store): "not evaluated yet",
    }.items():
        code, told = rfft(*arguments)
        assert code == 2 and message in told and told.count("\n") == 1, (arguments, told)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_stop_keeps_what_was_done(
    rfft: Rfft, store: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between two steps: exit code 75, a checkpoint, and the same command goes on."""
    command = ("preference", "train", "--data", store, *SMALL, f"network.encoder={clip}", "network.train=all")
    with monkeypatch.context() as patched:
        patched.setattr(loop.Callback, "after_step", stop_after_one)
        code, told = rfft(*command)
    assert code == 75, told
    code, told = rfft(*command)
    assert code == 0 and "goes on after step 1 of 4" in told, told


def stop_after_one(callback: loop.Callback, scalars: object) -> None:
    learner = getattr(callback, "learner", None)
    if learner is not None:
        learner.signals.received = 15
