"""`python -m tests.attempts FAULT ARGUMENTS...`: the real command, `rfft ARGUMENTS...` in bad luck.

Every attempt is a fork of this process, so that imports are paid once. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psutil

from rfft.adworld import products
from rfft.cli.main import main
from rfft.training import learner, tracking, trainer

SAVED = ("adapter.safetensors", "ema.safetensors", "state.pt", "sha256.json")
SAME = ("metrics.jsonl", "export/diffusers/pytorch_lora_weights.safetensors")
Luck = Callable[[], object]


def attempt(arguments: list[str], luck: Luck = lambda: None) -> tuple[int, float]:
    """Exit code (below zero: the signal that ended it) and CPU seconds; `luck` is called first, within it."""
    child = os.fork()
    if child:
        _, status, used = os.wait4(child, 0)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
    code: object = 1
    try:
        luck()
        sys.argv = ["rfft", *arguments]
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def on_writes(act: Callable[[int], object]) -> Luck:
    """Calls act(n) at the n-th step of writing and rotating checkpoints, as Python's audit events tell."""
    steps = count(1)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            paths = [str(path) for path in arguments[:2] if isinstance(path, (str, os.PathLike))]
            if any("checkpoints" in path or path in SAVED for path in paths):
                act(next(steps))

    return lambda: sys.addaudithook(watch)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(seconds: float) -> Luck:
    """Of CPU time, whatever else the machine does; SIGPROF, unhandled, ends a process as SIGKILL does."""
    return lambda: signal.setitimer(signal.ITIMER_PROF, seconds)


def at_write(wanted: int) -> Luck:
    return on_writes(lambda step: die() if step == wanted else None)


def kill(arguments: list[str], kills: int) -> dict[str, int]:
    """Killed at random moments and within checkpoints, again and again; the result must not change."""
    rng, notes = random.Random(kills), Path("writes")
    writing = on_writes(lambda step: notes.write_text(str(step)))
    code, seconds = attempt([*arguments, "run.name=whole"], writing)
    assert code == 0
    writes = int(notes.read_text())
    done = {"kills": 0, "in_a_write": 0, "runs": 0}
    while done["kills"] < kills:
        name = f"killed-{done['runs']}"
        killed = True
        while killed:
            in_a_write = done["kills"] % 2 == 0
            luck = at_write(rng.randint(1, writes)) if in_a_write else after(rng.uniform(0, seconds))
            again = [*arguments, f"run.name={name}"]
            code, _ = attempt(again, luck if done["kills"] < kills else lambda: None)
            killed = code in (-signal.SIGKILL, -signal.SIGPROF)
            done["kills"] += killed
            done["in_a_write"] += killed and in_a_write
        assert code == 0, code
        whole, resumed = Path("runs/whole"), Path("runs", name)
        last = max(path.name for path in (whole / "checkpoints").glob("step-*"))
        for file in (*SAME, *(f"checkpoints/{last}/{part}" for part in SAVED[:2])):
            assert (resumed / file).read_bytes() == (whole / file).read_bytes(), file
        done["runs"] += 1
    return done


def full(arguments: list[str]) -> dict[str, object]:
    """The disk is full while a checkpoint is saved (by tests.toys:Faulty); then there is space again."""
    first, _ = attempt(arguments)
    kept = sorted(path.name for path in Path("runs/small/checkpoints").iterdir())
    Path("runs/ballast").unlink()
    return {"first": first, "kept": kept, "second": attempt(arguments)[0]}


def without_wandb() -> None:
    """W&B does not answer; then, before the second micro-batch, its process dies."""
    tracking.INIT = 2.0
    micro_batch, calls = learner.Learner.micro_batch, count(1)

    def disturbed(self: learner.Learner, micro: int) -> object:
        if next(calls) == 2:
            for child in psutil.Process().children(recursive=True):
                if "wandb" in child.name():
                    child.kill()
                    child.wait()
        return micro_batch(self, micro)

    learner.Learner.micro_batch = disturbed  # type: ignore[method-assign]


if __name__ == "__main__":
    products.REFERENCE_IMAGES = 8
    assert trainer.train  # imported here, not in every attempt
    what, *rest = sys.argv[1:]
    found: object = None
    if what == "kill":
        found = kill(rest, int(os.environ.get("KILLS", "1")))
    elif what == "full":
        found = full(rest)
    else:
        found, _ = attempt(rest, without_wandb)
    sys.stdout.write(json.dumps(found) + "\n")
