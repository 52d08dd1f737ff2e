"""Checkpoints: whole or not there, rotated, checked, and read without running anything in them."""

from __future__ import annotations

import json
import math
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rfft.errors import UserError
from rfft.training.ema import Ema
from rfft.training.learner import TrainingCounters
from rfft.training.recorder import CheckpointSaver
from rfft.utils import checkpoint
from rfft.utils.checkpoint import Checkpoints, copied, load_objects, load_weights


def trained(steps: int) -> tuple[nn.Module, dict[str, checkpoint.Stateful]]:
    """A layer after some steps of AdamW, and everything that changes with them."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    counters = TrainingCounters()
    for _ in range(steps):
        advance(layer, optimizer, warmup, counters)
    return layer, {"optimizer": optimizer, "warmup": warmup, "counters": counters}


def advance(layer: nn.Module, optimizer: object, warmup: object, counters: TrainingCounters) -> None:
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()  # type: ignore[attr-defined]
    warmup.step()  # type: ignore[attr-defined]
    optimizer.zero_grad()  # type: ignore[attr-defined]
    counters.step += 1


def weights(layer: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in layer.named_parameters()}


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    layer, objects = trained(3)
    path = Checkpoints(tmp_path, keep=2).save(3, {"adapter": weights(layer)}, objects)
    assert path == tmp_path / "step-000003"

    again, fresh = trained(0)
    for name, tensor in load_weights(path, "adapter").items():
        weights(again)[name].copy_(tensor)
    load_objects(path, fresh)
    assert fresh["counters"] == objects["counters"] == TrainingCounters(step=3)
    for module, state in ((layer, objects), (again, fresh)):
        for _ in range(3):
            advance(module, state["optimizer"], state["warmup"], state["counters"])  # type: ignore[arg-type]
    assert all(torch.equal(weights(layer)[name], tensor) for name, tensor in weights(again).items())


def test_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (9, 10, 1_000_000):
        checkpoints.save(step, {"adapter": {"w": torch.ones(1)}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-1000000"]
    assert checkpoints.latest() == tmp_path / "step-1000000"


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.best() is None
    for step, score in enumerate((0.5, 0.8125, 0.25, 0.8125), start=1):
        stored = {"adapter": {"w": torch.tensor([score])}}
        checkpoints.save(step, stored, {})
        checkpoints.save_best(score, step, stored, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-0.8125-step-000002", "step-000004"]
    best = checkpoints.best()
    assert best is not None and load_weights(best, "adapter")["w"].item() == 0.8125
    assert checkpoints.latest() == tmp_path / "step-000004"


@pytest.mark.parametrize("score", [1 / 3, 2 / 3])  # a name has four digits, rounded down and up
def test_the_best_is_found_again_by_a_resumed_run(tmp_path: Path, score: float) -> None:
    """It evaluates the step that it goes on from anew; a later one as good does not push it out."""
    for step in (1, 1, 2):
        Checkpoints(tmp_path, keep=1).save_best(score, step, {"adapter": {"w": torch.ones(1)}}, {})
        assert [path.name for path in tmp_path.iterdir()] == [f"best-{score:.4f}-step-000001"]


def test_one_best_is_left(tmp_path: Path) -> None:
    """After a crash between writing the new one and removing the old one, too."""
    checkpoints, stored = Checkpoints(tmp_path, keep=1), {"adapter": {"w": torch.ones(1)}}
    checkpoints.save_best(0.5, 1, stored, {})
    shutil.copytree(tmp_path / "best-0.5000-step-000001", tmp_path / "best-0.2500-step-000000")
    checkpoints.save_best(0.75, 2, stored, {})
    assert [path.name for path in tmp_path.iterdir()] == ["best-0.7500-step-000002"]


@pytest.mark.parametrize("file", ["adapter.safetensors", "state.pt", "sha256.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        checkpoints.save(step, {"adapter": {"w": torch.ones(64)}}, {"counters": TrainingCounters(step)})
    victim = tmp_path / "step-000002" / file
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.unlink()
    if damage != "gone":
        victim.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert checkpoints.latest() == tmp_path / "step-000001"
    assert "step-000002 is damaged" in caplog.text
    checkpoints.save(2, {"adapter": {"w": torch.ones(64)}}, {})  # the resumed run gets there again
    assert checkpoints.latest() == tmp_path / "step-000002"


def test_a_run_does_not_begin_anew_over_damaged_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        path = checkpoints.save(step, {"adapter": {"w": torch.ones(1)}}, {})
        (path / "state.pt").unlink()
        (path / "state.pt").mkdir()  # reading it fails as on a broken disk
    with pytest.raises(UserError, match="no checkpoint here is intact or can be read"):
        checkpoints.latest()
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_newer_ones_do_not_push_out_the_good_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20):
        checkpoints.save(step, {"adapter": {"w": torch.ones(1)}}, {})
    (tmp_path / "step-000020" / "state.pt").unlink()
    Checkpoints(tmp_path, keep=1).save(15, {"adapter": {"w": torch.ones(1)}}, {})  # resumed, interrupted
    assert [path.name for path in tmp_path.iterdir()] == ["step-000015"]


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB: writing fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("file", ["adapter.safetensors", "state.pt"])
def test_a_full_disk_costs_nothing_but_the_new_one(tmp_path: Path, file: str) -> None:
    """Neither safetensors nor torch says what it is in words for people."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    kept = checkpoints.save(1, {"adapter": {"w": torch.ones(1)}}, {})
    large = torch.nn.Linear(1000, 100)
    with small_files(), pytest.raises(UserError) as error:
        if file == "state.pt":
            checkpoints.save(2, {}, {"optimizer": large})
        else:
            checkpoints.save(2, {"adapter": dict(large.named_parameters())}, {})
    assert str(error.value) == (
        f"{tmp_path}/step-000002 cannot be written, earlier checkpoints are intact: file too large; "
        "make room and run the same command again"
    )
    assert list(tmp_path.iterdir()) == [kept] and checkpoints.latest() == kept


def test_copies_beside_them_are_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    stored = {"adapter": {"w": torch.ones(1)}}
    for step in (1, 2):
        path = checkpoints.save(step, stored, {})
        if step == 1:
            checkpoints.save_best(0.5, 1, stored, {})
            for kept in (path, tmp_path / "best-0.5000-step-000001"):
                shutil.copytree(kept, kept.with_name(f"{kept.name}.bak"))
    assert checkpoints.latest() == tmp_path / "step-000002"
    assert checkpoints.best() == tmp_path / "best-0.5000-step-000001"
    assert (tmp_path / "step-000001.bak").is_dir()


def test_a_half_written_one_is_not_seen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for name in (".step-000001.part", ".step-000007.part"):  # the other one: a signal's, then killed
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").write_bytes(b"half")
    assert checkpoints.latest() is None
    path = checkpoints.save(1, {"adapter": {"w": torch.ones(1)}}, {})
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert set(json.loads((path / "sha256.json").read_text())) == {"adapter.safetensors", "state.pt"}


def test_ema_by_hand() -> None:
    """Decays 1/10 and 2/11 while it warms up, then the given one; a counter is copied."""
    weight, count = torch.tensor([1.0], dtype=torch.float64), torch.tensor(3)
    ema = Ema({"w": weight, "n": count}, decay=0.15)
    weight.fill_(3.0)
    count.fill_(4)
    ema.update()
    assert ema.average["w"].item() == pytest.approx(0.1 * 1 + 0.9 * 3) and ema.average["n"] == 4
    weight.fill_(5.0)
    ema.update()  # 2/11 is more than 0.15
    assert ema.average["w"].item() == pytest.approx(0.15 * 2.8 + 0.85 * 5)
    with ema.applied():
        assert weight.item() == pytest.approx(4.67)
    assert weight == 5.0 and ema.state_dict() == {"updates": 2}


def test_the_first_weights_are_forgotten() -> None:
    """After 66 steps at 0.999 they have no share worth naming: the product of all decays, 9! 66! / 75!."""
    weight = torch.ones(1, dtype=torch.float64)
    ema = Ema({"w": weight}, decay=0.999)
    weight.zero_()
    for _ in range(66):
        ema.update()
    assert ema.average["w"].item() == pytest.approx(math.factorial(9) / math.perm(75, 9), rel=1e-6)


def test_a_resumed_average_goes_on_with_its_decay() -> None:
    weight = torch.zeros(1)
    whole, parts = Ema({"w": weight}, decay=0.999), Ema({"w": weight}, decay=0.999)
    for step in range(6):
        weight.fill_(float(step))
        whole.update()
        parts.update()
        if step == 2:
            resumed = Ema({"w": weight}, decay=0.999)
            resumed.load(parts.average)
            resumed.load_state_dict(parts.state_dict())
            parts = resumed
    assert torch.equal(whole.average["w"], parts.average["w"])


class Busy:
    """A learner whose weights change while its checkpoints are written."""

    def __init__(self) -> None:
        self.layer, self.named = trained(1)
        self.counters = self.named["counters"]
        self.accelerator = SimpleNamespace(is_main_process=True)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        return {"adapter": weights(self.layer)}

    def objects(self) -> dict[str, checkpoint.Stateful]:
        return self.named

    def advance(self) -> None:
        advance(self.layer, *(self.named[name] for name in ("optimizer", "warmup", "counters")))  # type: ignore[arg-type]


def test_the_next_steps_go_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is the state at the time; the next checkpoint waits for its end."""
    learner, checkpoints = Busy(), Checkpoints(tmp_path, keep=9)
    go_on, write = threading.Event(), checkpoints._write

    def slow(*arguments: Any) -> Path:
        assert go_on.wait(30)
        return write(*arguments)

    monkeypatch.setattr(checkpoints, "_write", slow)
    saver = CheckpointSaver(learner, checkpoints, every=1)  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in weights(learner.layer).items()}
    moments = copied(learner.named["optimizer"].state_dict())["state"][0]["exp_avg"]
    saver.save()
    learner.advance()  # nothing is written yet
    assert not list(tmp_path.iterdir())
    go_on.set()
    saver.save()
    saver.on_end()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000001", "step-000002"]
    found = load_weights(tmp_path / "step-000001", "adapter")
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    _, fresh = trained(0)
    load_objects(tmp_path / "step-000001", fresh)
    assert fresh["counters"] == TrainingCounters(step=1)
    assert torch.equal(fresh["optimizer"].state_dict()["state"][0]["exp_avg"], moments)
    assert not torch.equal(load_weights(tmp_path / "step-000002", "adapter")["weight"], before["weight"])


def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    saver = CheckpointSaver(Busy(), Checkpoints(tmp_path / "checkpoints", keep=1), every=1)  # type: ignore[arg-type]
    saver.save()
    with pytest.raises(UserError, match="earlier checkpoints are intact"):
        saver.on_end()
    saver.close()
