"""A sweep's file becomes checked runs; its processes share the machine and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rfft.config.load import load_config, to_yaml
from rfft.config.sweep import plan_sweep
from rfft.errors import UserError
from rfft.evaluation.methods import method_of
from rfft.training.jobs import Failure, Job, Jobs, Task, environment
from rfft.training.sweep import command_line, is_finished, launcher_program
from rfft.utils.signals import StopSignals
from rfft.utils.subprocesses import Command, stop
from tests.unit.test_lock import holder

SWEEPS = Path(__file__).parents[2] / "configs" / "sweeps"


def written(folder: Path, text: str) -> Path:
    (folder / "trial.yaml").write_text(text)
    return folder / "trial.yaml"


def test_the_ablation_tries_several_strengths_on_validation_products_alone() -> None:
    configs = [run.config for run in plan_sweep(SWEEPS / "ablation.yaml").runs]
    strengths = {
        kind: {c.objective.beta for c in configs if c.objective.regularizer == kind} for kind in ("kl", "cc")
    }
    assert strengths == {"kl": {30, 100}, "cc": {0.01, 0.03, 0.1}}
    assert {(c.evaluate.products, c.evaluate.reference) for c in configs} == {
        ("adworld:val", "auto")
    }  # KID's pictures are of the same split


@pytest.mark.parametrize("base", ["tiny", "sd15_lora_cc"])
def test_the_comparison_trains_the_papers_methods(base: str) -> None:
    runs = plan_sweep(Path("compare"), Path(base)).runs
    names = [method_of(asdict(run.config), "tuned", {}) for run in runs if run.train]
    cc = f"CC, beta {load_config(base).objective.beta:g}"
    assert names == ["ReFL", "DRaFT-4", "RFFT, KL, beta 100", f"RFFT, {cc}", f"DRTune, {cc}"]
    alone = {run.name: run.config.evaluate for run in runs if not run.train}
    assert alone["recurrent"].only_accepted and "cluttered" in (alone["prompteng"].negative_prompt or "")


def test_settings_of_the_sweep_the_arm_and_the_command_line_in_this_order(tmp_path: Path) -> None:
    text = """
        config: tiny
        settings: [trainer.steps=5, optimizer.lr=1e-3, trainer.batch_size=2]
        seeds: [3, 4]
        arms:
          - {name: a, settings: [optimizer.lr=2e-3, "evaluate.quality_words='sharp, bright'"]}
          - {name: b, seeds: [7]}
          - {name: alone, train: false}
    """
    plan = plan_sweep(written(tmp_path, text), overrides=["trainer.batch_size=1"])
    runs = {run.name: run for run in plan.runs}
    assert list(runs) == ["a-seed3", "a-seed4", "b-seed7", "alone"]
    assert [run.config.run.seed for run in plan.runs] == [3, 4, 7, 0]
    first = runs["a-seed3"].config
    assert (first.trainer.steps, first.optimizer.lr, first.trainer.batch_size) == (5, 2e-3, 1)
    assert first.evaluate.quality_words == "sharp, bright" and first.tracker.group == "trial"
    assert runs["alone"].folder == Path("runs/trial/alone") and plan.out == Path("runs/trial")
    # What is started reads to the config that was checked.
    program, line = command_line(runs["a-seed3"]), command_line(runs["alone"], ["accelerate", "launch"])
    assert program[:4] == [sys.executable, "-m", "rfft", "train"]
    assert line[:5] == ["accelerate", "launch", "-m", "rfft", "evaluate"]
    assert load_config(program[4], program[5:]) == first


BASE = "config: tiny\narms: ["


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "config: tiny\narms: [{name: a}, {name: b, settings: [objective.beta=x]}]",
            "arm b: .*objective.beta",
        ),
        (
            "config: tiny\narms: [{name: a, settings: [optimiser.lr=1]}]",
            "arm a: .*did you mean 'optimizer'",
        ),
        (
            "config: tiny\narms: [{name: a, settings: [evaluate.enabled=false]}]",
            "arm a: .*evaluate.enabled=true",
        ),
        (BASE + "{name: a, settings: [run.seed=1]}]", "arm a: run.seed: the sweep itself"),
        (BASE + "{name: ../a}]", "arm ../a: the name must be fit for a folder"),
        (BASE + "{name: logs}]", "'logs' and 'claims' are taken"),
        (BASE + "{name: a}, {name: a}]", "two runs are called a"),
        (BASE + "{settings: []}]", "name"),
        (BASE + "]", "a sweep needs arms"),
        ("arms: [{name: a}]", "config"),
        ("config: nowhere\narms: [{name: a}]", "nowhere: no such config"),
        ("config: tiny\nseed: [1]\narms: [{name: a}]", ":2: unknown key 'seed'; did you mean 'seeds'"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*trial.yaml[^\n]*{message}[^\n]*$"):
        plan_sweep(written(tmp_path, text))


def test_a_run_is_finished_by_its_summary_and_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arms = "arms: [{name: a}, {name: b, train: false}]"
    text = f"config: tiny\nsettings: [trainer.steps=5, trainer.max_minutes=10]\n{arms}"
    trained, alone = plan_sweep(written(tmp_path, text)).runs
    for run in (trained, alone):
        assert not is_finished(run)
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(to_yaml(run.config))
        assert not is_finished(run)
    summary = {"base": {}, "tuned": {}, "steps": 5, "seconds": 9.0}
    for found, done in (
        (summary, True),
        (summary | {"steps": 4}, False),  # of an earlier, shorter run that is being continued
        (summary | {"steps": 4, "seconds": 600.0}, True),  # the time was over: trainer.max_minutes=10
        ({"steps": 5}, False),
    ):
        (trained.folder / "summary.json").write_text(json.dumps(found))
        assert is_finished(trained) == done
    (alone.folder / "summary.json").write_text('{"base": {}}')
    assert is_finished(alone)
    changed = load_config("tiny", [*alone.overrides, "evaluate.seeds=3"])
    assert not is_finished(replace(alone, config=changed))


def test_slots_share_cores_and_gpus() -> None:
    known = {"OMP_NUM_THREADS": "8", "CUDA_VISIBLE_DEVICES": "0,2,5", "PATH": "/usr/bin"}
    slots = [environment(slot, 2, known) for slot in (0, 1)]
    assert [own["OMP_NUM_THREADS"] for own in slots] == ["4", "4"]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in slots] == ["0,5", "2"]
    assert environment(3, 4, known)["CUDA_VISIBLE_DEVICES"] == "0"  # more runs than GPUs
    assert environment(0, 1, known)["CUDA_VISIBLE_DEVICES"] == "0,2,5"
    assert environment(0, 16, known)["OMP_NUM_THREADS"] == "1"
    assert environment(0, 1, known)["PATH"].startswith(str(Path(sys.executable).parent))


def test_launchers_are_found_beside_python_though_nothing_is_activated() -> None:
    assert launcher_program("accelerate launch --config_file 'my file.yaml'")[-1] == "my file.yaml"
    for wrong in ("nowhere launch", "accelerate 'launch"):
        with pytest.raises(UserError, match=r"^--launcher[^\n]*$"):
            launcher_program(wrong)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(done: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.02)


SLEEPER = "import time; time.sleep(600)"
# A launcher that passes no signal on, as `accelerate launch` with one process.
LAUNCHER = (
    "import subprocess, sys; "
    f"print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]).pid, flush=True); {SLEEPER}"
)
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); {SLEEPER}"


def test_commands_end_with_all_that_they_have_started(tmp_path: Path) -> None:
    commands = [
        Command([sys.executable, "-c", code], tmp_path / "logs" / f"{i}.log", os.environ)
        for i, code in enumerate((LAUNCHER, STUBBORN, SLEEPER))
    ]
    wait_for(lambda: all(command.last_line() for command in commands[:2]))
    started = int(commands[0].last_line())
    assert is_running(started) and not any(command.is_gone() for command in commands)
    stop(commands, grace=0.5)
    wait_for(lambda: not is_running(started))
    assert [command.exit_code() for command in commands] == [-15, -9, -15]


@pytest.mark.skipif(sys.platform != "linux", reason="a process is told of its parent's death on Linux alone")
def test_commands_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom rfft.utils.subprocesses import Command\n"
        f"code = 'import os; print(os.getpid(), flush=True); {SLEEPER}'\n"
        "command = Command([sys.executable, '-c', code], Path(sys.argv[1]), os.environ)\ntime.sleep(600)"
    )
    log = tmp_path / "child.log"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(log)], env=os.environ | {"PYTHONPATH": str(SWEEPS.parents[1])}
    )
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
    child = int(log.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_running(child))


def writes(file: Path, text: str, seconds: float = 0) -> Task:
    """A command that writes a file, after which it is done."""
    code = f"import time; time.sleep({seconds}); open({str(file)!r}, 'a').write({text!r})"
    return Task((sys.executable, "-c", code), lambda: file.exists())


def test_two_programs_share_jobs_and_repeat_nothing(tmp_path: Path) -> None:
    """Each job is done once, its commands one after the other, by whoever takes it; a failure is told."""
    jobs = [
        Job(name, (writes(tmp_path / f"{name}1", "x", 0.1), writes(tmp_path / f"{name}2", "y")))
        for name in "abc"
    ]
    jobs.append(Job("d", (Task((sys.executable, "-c", "raise SystemExit('no luck')"), lambda: False),)))
    (tmp_path / "b1").write_text("x")  # done before
    here, failures = list[str](), list[Failure]()
    work = Jobs("trial", jobs, tmp_path, 2, lambda job: here.append(job.name))
    claim = tmp_path / "claims" / "a"
    claim.mkdir(parents=True)
    with holder(claim) as other, StopSignals() as signals:  # another program has a in hand
        thread = threading.Thread(target=lambda: failures.extend(work.work(signals)))
        thread.start()
        wait_for(lambda: sorted(here) == ["b", "c"])
        assert not (tmp_path / "a1").exists() and thread.is_alive()
        (tmp_path / "a1").write_text("x")  # it finishes one command, and is gone
        other.kill()
        other.wait()
        thread.join(60)
    assert sorted(here) == ["a", "b", "c"]
    assert [(tmp_path / f"{name}{i}").read_text() for name in "abc" for i in (1, 2)] == ["x", "y"] * 3
    assert [str(failure) for failure in failures] == [f"d: exit code 1, see {tmp_path}/logs/d.log: no luck"]
