"""Checkpoints: named stateful objects in a folder that is whole or not there.

checkpoints/step-000020/                       the newest ones
            best-0.8542-step-000040/           the highest score above the guardrails
                adapter.safetensors           trained weights
                ema.safetensors               their moving average, where one is kept
                state.pt                      state_dict of every named object
                sha256.json                   of the files above; written last
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_map_only

from rfft.errors import UserError, disk_problem
from rfft.utils.atomic_io import aside, open_as_umask_says

log = logging.getLogger(__name__)
STATE, SUMS = "state.pt", "sha256.json"
BEST = r"best-[\d.]+-step-\d+"
Weights = Mapping[str, Tensor]


class Stateful(Protocol):
    """What a checkpoint stores and gives its state back: modules, optimizers, counters."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Snapshot:
    """The state that an object has now, copied into the CPU's memory: it may go on changing."""

    def __init__(self, item: Stateful) -> None:
        self._state: dict[str, Any] = copied(item.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state


def copied(value: Any) -> Any:
    """Return a nest of mappings and sequences with copies of its tensors, in the CPU's memory."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), value)


class Checkpoints:
    """The checkpoints of a run, in a folder of their own."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Manage the checkpoints below `folder`, of which the newest `keep` stay."""
        self.folder, self.keep = folder, keep

    def save(self, step: int, weights: Mapping[str, Weights], objects: Mapping[str, Stateful]) -> Path:
        """Write the checkpoint of a step and remove older ones; returns its folder.

        Each of `weights` becomes NAME.safetensors, and the states of all objects one file. Raises UserError
        if they cannot be written; earlier checkpoints are then as they were.
        """
        path = self._write(f"step-{step:06}", weights, objects)
        found = self._found()
        here = found.index(path)
        # Those of later steps are damaged, or the run would have gone on from them; they must not count.
        for other in (*found[:here], *found[here + self.keep :]):
            shutil.rmtree(other)
        return path

    def save_best(
        self, score: float, step: int, weights: Mapping[str, Weights], objects: Mapping[str, Stateful]
    ) -> None:
        """Keep a checkpoint beside the newest ones if no earlier one has this score, to four digits."""
        kept = self.best()
        if kept is not None and score_of(kept) >= round(score, 4):
            return
        path = self._write(f"best-{score:.4f}-step-{step:06}", weights, objects)
        for other in self._named(BEST):
            if other != path:
                shutil.rmtree(other)

    def best(self) -> Path | None:
        """Return the intact checkpoint of the highest score, or None."""
        found = sorted(self._named(BEST), key=lambda path: path.name, reverse=True)
        return next((path for path in found if _intact(path)), None)

    def at(self, step: int) -> Path | None:
        """Return the intact checkpoint of a step, a newest or the best one; None without one."""
        found = [path for path in self._named(rf"step-\d+|{BEST}") if step_of(path) == step]
        return next((path for path in found if _intact(path)), None)

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints that are there."""
        return sorted({step_of(path) for path in self._named(rf"step-\d+|{BEST}")})

    def _write(self, name: str, weights: Mapping[str, Weights], objects: Mapping[str, Stateful]) -> Path:
        """Write a checkpoint aside and rename it: a crash leaves no half."""
        path = self.folder / name
        draft = aside(path)
        try:
            for old in self.folder.glob(".*.part"):  # of a run that was killed while writing
                shutil.rmtree(old, ignore_errors=True)
            draft.mkdir(parents=True)
            for part, tensors in weights.items():
                save_file(_plain(tensors), draft / f"{part}.safetensors", metadata={"format": "pt"})
            with (draft / STATE).open("wb") as file:
                torch.save({key: item.state_dict() for key, item in objects.items()}, file)
            sums = {file.name: sha256(file) for file in sorted(draft.iterdir())}
            (draft / SUMS).write_text(json.dumps(sums, indent=1) + "\n")
            open_as_umask_says(draft)
            for written in (*draft.iterdir(), draft):
                _sync(written)
            shutil.rmtree(path, ignore_errors=True)  # only there if it was damaged
            draft.replace(path)
            _sync(self.folder)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch's writer raises RuntimeError
            shutil.rmtree(draft, ignore_errors=True)
            reason = disk_problem(error) or f"{error}; make room and run the same command again"
            raise UserError(f"{path} cannot be written, earlier checkpoints are intact: {reason}") from error
        return path

    def has(self, step: int) -> bool:
        """Tell whether there is an intact checkpoint of this step."""
        return _intact(self.folder / f"step-{step:06}")

    def latest(self) -> Path | None:
        """Return the newest intact checkpoint, or None if there is none at all.

        Raises UserError where all are damaged, since to begin anew would remove them.
        """
        found = self._found()
        for path in found:
            if _intact(path):
                return path
            log.warning("%s is damaged; using the one before", path)
        if found:
            raise UserError(
                f"{self.folder}: no checkpoint here is intact or can be read; bring one back, or remove the "
                "run's folder to begin anew"
            )
        return None

    def _found(self) -> list[Path]:
        return sorted(self._named(r"step-\d+"), key=lambda path: int(path.name[5:]), reverse=True)

    def _named(self, pattern: str) -> list[Path]:
        """Return folders of exactly such a name: a copy that somebody put beside them is none of ours."""
        return [path for path in self.folder.glob("*") if re.fullmatch(pattern, path.name)]


def step_of(path: Path) -> int:
    """Return the number of optimizer steps behind a checkpoint."""
    return int(path.name.rpartition("-")[2])


def score_of(path: Path) -> float:
    """Return the score, to four digits, by which a best checkpoint was chosen."""
    return float(path.name.split("-")[1])


def load_weights(path: Path, name: str) -> dict[str, Tensor]:
    """Return the tensors that a checkpoint has under a name, on the CPU."""
    return load_file(path / f"{name}.safetensors")


def load_objects(path: Path, objects: Mapping[str, Stateful]) -> None:
    """Give every object the state that a checkpoint has of it."""
    states = torch.load(path / STATE, map_location="cpu", weights_only=True)
    for name, item in objects.items():
        item.load_state_dict(states[name])


def _plain(weights: Weights) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _intact(path: Path) -> bool:
    try:
        sums = json.loads((path / SUMS).read_text())
        return all(sha256(path / name) == known for name, known in sums.items())
    except (OSError, ValueError):
        return False


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or a folder's entries onto the disk, not just into its cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
