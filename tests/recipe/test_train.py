"""Training through the real command line: what it leaves behind, resume, and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from rfft.adworld import products
from rfft.config.load import load_config
from rfft.errors import Interrupted
from rfft.evaluation import painter, summary
from rfft.evaluation.guard import guard
from rfft.metrics.estimate import Estimate
from rfft.rewards.availability import Availability
from rfft.training import callbacks, learner
from rfft.types import Batch
from rfft.utils.checkpoint import Checkpoints
from rfft.utils.signals import StopSignals
from tests.rows import rows as metrics_rows
from tests.unit.test_lock import holder

Rfft = Callable[..., tuple[int, str]]
PLAIN = ("evaluate.enabled=false", "trainer.sample_every=0")
SMALL_GRID = (  # two pictures, one at a time
    *("evaluate.count=1", "evaluate.prompts_per_product=1", "evaluate.batch_size=1", PLAIN[1]),
    *("evaluate.max_attempts=2", "evaluate.reference=null", "evaluate.probe=null"),
    "evaluate.validation.count=1",
)


@pytest.fixture
def rfft(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., tuple[int, str, str]],
) -> Iterator[Rfft]:
    """rfft(*overrides) -> (exit code, stderr) of `rfft train`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(products, "REFERENCE_IMAGES", 8)

    def run(*overrides: str) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        code, _, told = run_command("train", world / "config.yaml", "data.count=6", *overrides)
        return code, told

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def rows(run: str) -> list[dict[str, float]]:
    return metrics_rows(Path("runs", run))


def weights(run: str, step: int, name: str = "adapter") -> dict[str, Tensor]:
    return load_file(Path("runs", run, "checkpoints", f"step-{step:06}", f"{name}.safetensors"))


def another_rfnet(rfnet: Path, folder: Path) -> Path:
    """Copy an RFNet with a head of its own."""
    shutil.copytree(rfnet, folder)
    weights = load_file(folder / "model.safetensors")
    head = max(name for name in weights if name.startswith("head.") and name.endswith("weight"))
    weights[head] = weights[head].roll(1, 0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_run_from_one_end_to_the_other(rfft: Rfft, world: Path, tmp_path: Path) -> None:
    monitor = another_rfnet(world / "rfnet", tmp_path / "monitor")
    every = ["trainer.sample_every=1", "trainer.checkpoint_every=1", "evaluate.every=1"]
    every.append(f"evaluate.monitor={monitor}")
    code, told = rfft(*every)
    assert code == 0, told
    run = Path("runs/small")
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {
        *(
            "config.yaml",
            "environment.json",
            "metrics.jsonl",
            "evaluation.json",
            "summary.json",
            "report.html",
        ),
        *("samples/step-000000.png", "samples/step-000002.png", "samples/before_after.png"),
        *("checkpoints/step-000001/adapter.safetensors", "checkpoints/step-000002/state.pt"),
        "export/diffusers/pytorch_lora_weights.safetensors",
    } <= left
    assert not any(".part" in name for name in left)

    summary = json.loads((run / "summary.json").read_text())
    for state in ("base", "tuned"):
        found = summary[state]["metrics"]
        assert {"available_rate_rfnet", "diversity", "alignment", "attempts"} <= found.keys()
    assert summary["checkpoint"] == 2
    assert summary["steps"] == 2 and summary["grad_samples"] == 4 and summary["seconds"] > 0
    assert 2 * 4 <= summary["denoiser_forwards"] <= 2 * 5  # 2 or 3 without, 1 with gradient, 1 reference

    steps = [row["step"] for row in rows("small")]
    assert steps == [0, 0, 1, 1, 2, 2, 2]
    trained = metrics_rows(run, speed=True)[2]
    assert {"train/f_ac", "train/l_cc", "train/available", "train/grad_norm", "train/lr"} <= trained.keys()
    assert trained["perf/images_per_second"] == pytest.approx(2 / trained["perf/step_seconds"], rel=1e-4)
    assert 0.1 < trained["perf/memory_gib"] < 100
    assert 0 < trained["perf/denoiser_tflops"] < 10
    measured = {name.split("/")[2] for name in trained if name.startswith(("train/k2/", "train/k3/"))}
    assert {"reward", "l_cc", "grad_reward", "grad_l_cc"} <= measured  # at the step that was drawn
    # On the way it is measured on other products than at both ends.
    measured = [{name[:4] for name in row if name[:4] in ("eval", "val/")} for row in rows("small")]
    assert measured == [{"eval"}, {"val/"}, set(), {"val/"}, set(), {"val/"}, {"eval"}]
    validation = json.loads((run / "validation.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    grids = [{cell["product"] for cell in found["cells"]} for found in (validation, evaluation)]
    assert not grids[0] & grids[1] and validation["grid"]["evaluate.reference"] == "adworld:val"
    # The monitor chooses the best checkpoint, among those without a warning.
    validated = [
        {name[4:]: value for name, value in row.items()} for row in rows("small") if "val/gap" in row
    ]
    for found in validated:
        gap = found["available_rate_rfnet"] - found["available_rate_monitor"]
        assert found["gap"] == pytest.approx(gap)
    settings = load_config(run / "config.yaml").evaluate
    scores = [guard(validated[0], found, settings)[1] for found in validated[1:]]
    known = [score for score in scores if score is not None]
    assert known and summary["best"] == {
        "step": 1 + scores.index(max(known)),
        "score": pytest.approx(max(known), abs=1e-4),
        "chosen_by": "available_rate_monitor",
    }
    assert len(list(run.glob(f"checkpoints/best-*-{summary['best']['step']:06}"))) == 1
    assert "train/norm_growth" in trained and "monitor" in (run / "report.html").read_text()
    assert "eval/available_rate_rfnet" in rows("small")[0] and "eval/diversity" in rows("small")[-1]
    assert "before and after" in told and "runs/small/report.html" in told

    # Everything done: the same command again trains nothing and says the same.
    before = (run / "metrics.jsonl").read_bytes()
    assert "runs/small goes on" not in told
    code, told = rfft(*every)
    assert code == 0 and "before and after" in told and "runs/small is finished after step 2\n" in told
    assert (run / "metrics.jsonl").read_bytes() == before
    assert json.loads((run / "summary.json").read_text()) == summary


def test_the_main_job_on_the_embedded_weights(
    run_command: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """configs/tiny.yaml as it is, but short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(products, "REFERENCE_IMAGES", 8)
    short = ["data.count=8", "trainer.steps=2", "trainer.batch_size=2", "trainer.sample_every=0"]
    grid = ["rollout.steps=20", "evaluate.count=1", "evaluate.seeds=2", "evaluate.max_attempts=2"]
    code, _, told = run_command("train", "tiny", *short, *grid)
    assert code == 0, told
    summary = json.loads(Path("runs/tiny/summary.json").read_text())
    for state in ("base", "tuned"):
        found = summary[state]["metrics"]
        assert {"alignment_surface", "alignment_place", "alignment_light"} <= found.keys()
        assert found["alignment"]["value"] >= 0.5  # these weights have learnt to read prompts
        assert {"available_rate_rfnet", "available_rate_judge"} <= found.keys()
    assert summary["grad_samples"] == 2 * 2 * 4
    assert all(0 < row["train/grad_norm"] < 100 for row in rows("tiny") if "train/grad_norm" in row)
    exported = load_file("runs/tiny/export/diffusers/pytorch_lora_weights.safetensors")
    assert all(tensor.any() for name, tensor in exported.items() if "lora_B" in name)


def test_resumed_is_uninterrupted_bit_for_bit(rfft: Rfft) -> None:
    """Other settings: tests/unit/test_learner.py."""
    every = [*PLAIN, "trainer.checkpoint_every=2", "ema.enabled=true", "trainer.accumulation=2"]
    every += ["optimizer.warmup=3", "trainer.sample_every=2"]
    for overrides in (
        ["run.name=whole", "trainer.steps=4"],
        ["run.name=parts", "trainer.steps=2"],
        ["run.name=parts", "trainer.steps=4"],
    ):
        code, told = rfft(*every, *overrides)
        assert code == 0, told
    assert "runs/parts goes on after step 2 of 4\n" in told
    assert rows("whole") == rows("parts")
    assert rows("whole")[-1]["train/grad_norm"] > 0
    files = [*Path("runs/whole/checkpoints/step-000004").glob("*.safetensors")]
    for file in (*files, Path("runs/whole/samples/step-000004.png")):
        assert file.read_bytes() == Path("runs/parts", *file.parts[2:]).read_bytes()
    averaged, last = weights("whole", 4, "ema"), weights("whole", 4)
    assert any(not torch.equal(tensor, averaged[name]) for name, tensor in last.items())


def test_killed_between_checkpoints(rfft: Rfft) -> None:
    """Rows and pictures beyond the checkpoint are written again, a damaged checkpoint is passed over."""
    every = [*PLAIN, "trainer.checkpoint_every=1", "trainer.keep=3", "trainer.steps=3"]
    assert rfft(*every)[0] == 0
    metrics = Path("runs/small/metrics.jsonl")
    whole, last = rows("small"), weights("small", 3)
    metrics.write_bytes(metrics.read_bytes()[:-20])
    torn = Path("runs/small/checkpoints/step-000003/state.pt")
    torn.write_bytes(torn.read_bytes()[:100])
    assert rfft(*every)[0] == 0
    assert rows("small") == whole
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights("small", 3).items())


def test_time_is_up(rfft: Rfft) -> None:
    assert rfft(*PLAIN, "trainer.max_minutes=0.00001", "trainer.steps=50")[0] == 0
    assert [row["step"] for row in rows("small")] == [1]
    assert weights("small", 1)


def test_gradients_that_are_no_numbers(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is skipped, without a trace in the weights; five in a row end the run."""
    bad = {1, *range(3, 20)}
    plain = Availability.forward
    calls: list[int] = []

    def poisoned(self: Availability, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(len(calls))
        losses, scalars = plain(self, image, batch)
        return (float("nan") if calls[-1] in bad else 1.0) * losses, scalars

    monkeypatch.setattr(Availability, "forward", poisoned)
    code, told = rfft(*PLAIN, "trainer.steps=20", "trainer.checkpoint_every=1", "trainer.keep=9")
    assert code == 2
    assert "5 steps in a row without a finite loss and gradient, the last one is step 8" in told
    assert [row["train/skipped"] for row in rows("small")] == [0, 1, 1, 2, 3, 4, 5, 6][: len(rows("small"))]
    skipped = rows("small")[1]
    assert skipped["train/loss"] is None and "train/available" not in skipped
    first, second, third = (weights("small", step) for step in (1, 2, 3))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in first.items())


def test_a_run_without_a_finite_step_exports_nothing(rfft: Rfft) -> None:
    """Nor is anything of it called good: the same command again says the same."""
    settings = [SMALL_GRID[0], "trainer.steps=2", "trainer.checkpoint_every=1", "evaluate.every=1"]
    settings += ["reward.terms=[{use: rfnet, weight: .nan}]", "evaluate.reference=null"]
    for _ in range(2):
        code, told = rfft(*settings)
        assert code == 2, told
        assert "rfft: none of the 2 steps had a finite loss and gradient: nothing was trained" in told
        assert [row["train/skipped"] for row in rows("small") if row["step"]] == [1]
    assert not list(Path("runs/small").glob("export/*"))
    assert not list(Path("runs/small/checkpoints").glob("best-*"))


def test_one_command_at_a_time(rfft: Rfft, run_command: Callable[..., tuple[int, str, str]]) -> None:
    """A second one on the run is refused, whichever it is, and changes nothing; not after the first is
    dead.
    """
    assert rfft(*PLAIN, "trainer.steps=1")[0] == 0
    with holder(Path("runs/small")) as first:
        before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
        for command in (["export", "runs/small"], ["evaluate", "runs/small"]):
            code, _, told = run_command(*command)
            assert code == 2 and told.startswith("rfft: runs/small is in use by another command"), told
        code, told = rfft(*PLAIN, "trainer.steps=2")
        assert code == 2 and told.startswith("rfft: runs/small is in use by another command"), told
        assert len(told.splitlines()) == 1
        assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
        first.kill()
        first.wait()
        assert rfft(*PLAIN, "trainer.steps=2")[0] == 0


def test_a_guardrail_stops_the_run(
    rfft: Rfft, run_command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is exported then, and evaluated, is the best above it; there may be none."""
    found: list[float] = []  # of the base model on both grids, after each step, of what is exported
    monkeypatch.setattr(
        summary, "diversity_metrics", lambda *_: {"diversity": Estimate(found.pop(0), np.empty(0))}
    )
    settings = [*SMALL_GRID, "evaluate.every=1", "evaluate.stop_at_guardrail=true", "trainer.steps=9"]
    found[:] = 0.4, 0.2, 0.19, 0.1, 0.19
    code, told = rfft(*settings)
    assert code == 0 and "step 2: diversity fell to 50% of the base model's" in told, told
    assert "after step 2: the weights are those of step 1, the best that was above" in told
    assert max(row["step"] for row in rows("small")) == 2 and not found
    (best,) = Path("runs/small/checkpoints").glob("best-*")
    assert best.name.endswith("-step-000001")
    for out, more in (("best", ["--best"]), ("last", ["--step", "2"]), ("same", [])):
        code, _, told = run_command("export", "runs/small", "--out", out, *more)
        assert code == 0, told
    name = "pytorch_lora_weights.safetensors"
    exported = Path("runs/small/export/diffusers", name).read_bytes()
    assert exported == Path("best", name).read_bytes() == Path("same", name).read_bytes()
    assert exported != Path("last", name).read_bytes()
    assert json.loads(Path("runs/small/summary.json").read_text())["checkpoint"] == 1
    found[:] = 0.4, 0.19
    code, _, told = run_command("evaluate", "runs/small")
    assert code == 0 and "step 1 evaluated" in told  # and not the last, collapsed one

    before = Path("runs/small/metrics.jsonl").read_bytes()
    code, told = rfft(*settings)  # nothing is left to do
    assert code == 0 and "after step 2: the weights are those of step 1" in told
    assert Path("runs/small/metrics.jsonl").read_bytes() == before

    found[:] = 0.4, 0.2, 0.1, 0.1
    code, told = rfft(*settings, "run.name=none")
    assert code == 0 and "after step 1: the weights are those of the last step, as none was above" in told
    assert not list(Path("runs/none/checkpoints").glob("best-*"))


REFUSED = {
    "data.products=nowhere": "nowhere: no such folder or manifest of products",
    "model.bundle=.": "no model_index.json",
    "reward.depth=nowhere": "nowhere: no such network",
    "evaluate.judge=nowhere": "nowhere: no such network",
    "trainer.mixed_precision=fp16": "needs a GPU",
    "model.lora.target_modules=[nothing]": "model.lora.target_modules",
    "reward.terms=[{use: rfnet}, {use: nowhere}]": "reward.terms 'nowhere' is not known",
    "model.controlnet=nowhere": "model.controlnet nowhere: neither a folder nor a hub id",
    "rollout.steps=1000": "rollout.steps=1000: the bundle knows 1000 timesteps",
    "rollout.shared_draw=3": "rollout.shared_draw=3 must be a multiple of the 1 processes",
}


def test_a_mistake_leaves_nothing_behind(rfft: Rfft) -> None:
    for override, message in REFUSED.items():
        if "fp16" in override and torch.cuda.is_available():
            continue
        code, told = rfft(override)
        assert code == 2 and message in told, (override, told)
        assert not Path("runs").exists(), override


def test_another_config_is_refused(rfft: Rfft) -> None:
    assert rfft(*PLAIN, "trainer.steps=1")[0] == 0
    before = Path("runs/small/config.yaml").read_bytes()
    code, told = rfft(*PLAIN, "trainer.steps=2", "optimizer.lr=0.5")
    assert code == 2 and "runs/small belongs to another config: optimizer.lr" in told
    assert Path("runs/small/config.yaml").read_bytes() == before and len(rows("small")) == 1


def evaluated(run: str, state: str) -> list[float]:
    """RFNet's probabilities for all pictures of the grid."""
    found = json.loads(Path("runs", run, "evaluation.json").read_text())[state]["probabilities"]["rfnet"]
    return [p for row in found for p in row]


ACCELERATE = ("accelerate.commands.launch", "--cpu", "--num_processes=1")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")


def launch(
    launcher: tuple[str, ...],
    world: Path,
    folder: Path,
    *overrides: str,
    program: tuple[str, ...] = ("-m", "rfft"),
) -> None:
    command = [sys.executable, "-m", *launcher, *program, "train", str(world / "config.yaml")]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2]), "RANKS": str(folder)}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | paths
    done = subprocess.run(
        [*command, "data.count=6", *PLAIN, *overrides],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_accelerate_launch(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(ACCELERATE, world, tmp_path, "trainer.steps=1")
    monkeypatch.chdir(tmp_path)
    assert [row["step"] for row in rows("small")] == [1]


RANKS = (str(Path(__file__).with_name("ranks.py")),)


def nan(call: int, rank: int = 0) -> str:
    """A setting that makes the loss of a process's micro-batch no number; see tests.toys.Faulty."""
    options = {"what": "nan", "call": call, "rank": rank}
    return f"reward.terms=[{{use: rfnet}}, {{use: 'tests.toys:Faulty', options: {json.dumps(options)}}}]"


def numbers(run: str) -> list[dict[str, float]]:
    """The rows of its metrics.jsonl without what was no number."""
    return [{name: value for name, value in row.items() if value is not None} for row in rows(run)]


def gradients(run: str) -> Tensor:
    """AdamW's exp_avg of all weights after the first step, flat: a tenth of the gradient."""
    state = torch.load(Path("runs", run, "checkpoints/step-000001/state.pt"), weights_only=True)
    moments = state["optimizer"]["state"]
    return torch.cat([moments[i]["exp_avg"].flatten() for i in sorted(moments)])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the launched processes have: more of them add up in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(rfft: Rfft, world: Path, tmp_path: Path) -> None:
    """To 1e-6, though Adam's first steps are all sign; measured: the same bits.

    Both processes have the same weights; the third step, no number in the second one, is skipped in both.
    """
    same = ["rollout.steps=8", "rollout.last=6", "trainer.steps=3", "rollout.shared_draw=2"]
    same += ["evaluate.enabled=true", "evaluate.reference=null", "evaluate.every=2"]
    same += ["trainer.checkpoint_every=1", "trainer.keep=3"]
    settings = [*same, "run.name=two", "trainer.accumulation=1", nan(call=3, rank=1)]
    settings += ["tracker.kind=tensorboard"]  # closed by the first process alone
    launch(TORCHRUN, world, tmp_path, *settings, program=RANKS)
    assert rfft(*PLAIN, *same, "run.name=one", "trainer.accumulation=2", nan(call=6))[0] == 0
    assert [row["step"] for row in rows("two")] == [0, 0, 1, 2, 2, 3, 3]
    assert [row["train/skipped"] for row in rows("two") if "train/skipped" in row] == [0, 0, 1]
    kept = weights("two", 2)
    for left in (*(load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)), weights("two", 3)):
        assert left.keys() == kept.keys()
        assert all(torch.equal(tensor, kept[name]) for name, tensor in left.items())
    for one, two in zip(numbers("one"), numbers("two"), strict=True):
        assert one == pytest.approx(two, rel=1e-6, abs=1e-7)
    one, two = gradients("one"), gradients("two")
    assert one.norm() > 0 and (one - two).norm() <= 1e-6 * one.norm()
    for step in (1, 2):  # of 1e-5 each
        two = weights("two", step)
        for name, tensor in weights("one", step).items():
            torch.testing.assert_close(tensor, two[name], rtol=0, atol=1e-6)
    for name in ("base", "tuned"):
        assert evaluated("one", name) == pytest.approx(evaluated("two", name), abs=1e-6)
    one, two = (json.loads(Path("runs", name, "summary.json").read_text()) for name in ("one", "two"))
    assert all(one[name] == two[name] for name in ("grad_samples", "denoiser_forwards"))


def test_a_signal_saves_and_stops(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of step 2 of 3: it has not happened; the same command goes on as if nothing had."""
    before = signal.getsignal(signal.SIGINT)
    same = [*PLAIN, "trainer.steps=3", "trainer.accumulation=2", "trainer.checkpoint_every=100"]
    micro_batch, calls = learner.RFFTLearner.micro_batch, []

    def disturbed(self: learner.RFFTLearner, micro: int) -> object:
        calls.append(micro)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return micro_batch(self, micro)

    monkeypatch.setattr(learner.RFFTLearner, "micro_batch", disturbed)
    code, told = rfft(*same)
    assert code == 75 and "stopped after step 1; the same command goes on" in told
    assert [row["step"] for row in rows("small")] == [1] and len(calls) == 3
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(learner.RFFTLearner, "micro_batch", micro_batch)
    assert rfft(*same)[0] == 0
    assert rfft(*same, "run.name=undisturbed")[0] == 0
    assert rows("small") == rows("undisturbed")
    undisturbed = weights("undisturbed", 3)
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights("small", 3).items())


def test_a_signal_in_an_evaluation(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the base model, of step 1, of the tuned model: after the batch, what has been done is saved.

    Each grid has two pictures, a batch each; the base model is on both.
    """
    same = [*SMALL_GRID, "evaluate.every=1", "trainer.checkpoint_every=100", "trainer.steps=2"]
    paint_batch, calls = painter.Painter._paint_batch, []

    def disturbed(self: painter.Painter, *rest: object) -> object:
        calls.append(rest)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGUSR1)
        return paint_batch(self, *rest)  # type: ignore[arg-type]

    for last, step in ((1, 0), (2 + 2 + 1, 1), (2 + 2 + 1, 2)):
        calls.clear()
        monkeypatch.setattr(painter.Painter, "_paint_batch", disturbed)
        code, told = rfft(*same)
        assert code == 75 and f"stopped after step {step}; the same command goes on" in told, told
        assert len(calls) == last
        found = Checkpoints(Path("runs/small/checkpoints"), keep=2).latest()
        assert found == (Path(f"runs/small/checkpoints/step-{step:06}") if step else None)
    monkeypatch.setattr(painter.Painter, "_paint_batch", paint_batch)
    assert rfft(*same)[0] == 0
    assert rfft(*same, "run.name=undisturbed")[0] == 0
    assert rows("small") == rows("undisturbed")
    for name in ("evaluation.json", "checkpoints/step-000002/adapter.safetensors"):
        assert Path("runs/small", name).read_bytes() == Path("runs/undisturbed", name).read_bytes(), name


def test_a_signal_while_samples_are_painted(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are painted in parts of evaluate.batch_size, after the step is saved."""
    same = [PLAIN[0], "trainer.sample_every=1", "trainer.steps=1", "evaluate.batch_size=4"]
    paint, parts = callbacks.paint, []

    def disturbed(bundle: object, batch: Batch, *rest: object) -> Tensor:
        parts.append(len(batch))
        if len(parts) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return paint(bundle, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(callbacks, "paint", disturbed)
    assert rfft(*same)[0] == 75
    assert parts == [4, 2, 4] and weights("small", 1)
    sheet = Path("runs/small/samples/step-000001.png")
    assert not sheet.exists()
    assert rfft(*same)[0] == 0
    assert parts[3:] == [4, 2] and sheet.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_before_there_is_anything_to_save(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match="the same command starts again"), StopSignals():
        os.kill(os.getpid(), number)
        raise AssertionError("still here")


def test_a_second_signal_ends_at_once(world: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom rfft.utils.signals import StopSignals\n"
        "with StopSignals() as signals:\n"
        "    signals.deferred = True\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(signals.received.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "SIGTERM\n")
