"""W&B or TensorBoard, through accelerate's trackers. metrics.jsonl is written whatever happens here."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfft.config.load import flatten
from rfft.utils.log import messages, write_atomically

FILE = "tracker.json"
INIT, FINISH = 60.0, 300.0  # seconds that W&B has to answer at first, and for the last uploads


class Tracker:
    """Scalars, pictures and weights of a run. A tracker that fails is given up; training goes on."""

    def __init__(self, accelerator: Any, kind: str, run: Path, config: dict[str, Any]) -> None:
        """`accelerator`: made with log_with=kind and project_dir=run; `kind`: none, wandb or tensorboard;
        `config`: the resolved settings, nested; its group `tracker` is read.
        """
        self._accelerator, self._kind, self._run, self._config = accelerator, kind, run, config
        self._console = messages()
        self._alive = kind != "none"
        self._attempt(self._start)

    def _start(self) -> None:
        settings = self._config["tracker"]
        # TensorBoard takes plain values only.
        config = {
            key: v if isinstance(v, (int, float, str)) else str(v) for key, v in flatten(self._config).items()
        }
        start = partial(self._accelerator.init_trackers, settings["project"], config=config)
        if self._kind != "wandb":
            start(init_kwargs={})
            return
        mode = wandb_mode()
        try:
            start(init_kwargs={"wandb": self._wandb_options(mode)})
        except Exception as error:  # unreachable, or the key is refused
            if mode != "online":
                raise
            self._console.print(f"warning: W&B cannot be reached ({_reason(error)}); recording offline")
            start(init_kwargs={"wandb": self._wandb_options("offline")})

    def _wandb_options(self, mode: str) -> dict[str, Any]:
        from wandb import Settings

        return {
            "name": self._config["run"]["name"],
            "id": self._run_id(),
            "resume": "allow",
            "group": self._config["tracker"]["group"],
            "tags": self._config["tracker"]["tags"],
            "dir": str(self._run),
            "mode": mode,
            # Without a network it would wait at the end for ever; what is not sent stays on disk.
            "settings": Settings(
                silent=True, init_timeout=INIT, finish_timeout=FINISH, finish_timeout_raises=True
            ),
        }

    def _run_id(self) -> str:
        """Kept in the run's folder, so that a resumed run goes on in W&B as well."""
        file = self._run / FILE
        if not file.exists():
            write_atomically(file, json.dumps({"wandb": uuid.uuid4().hex[:12]}) + "\n")
        return str(json.loads(file.read_text())["wandb"])

    def log(self, scalars: dict[str, float], step: int) -> None:
        self._attempt(lambda: self._accelerator.log(scalars, step=step))

    def pictures(
        self, name: str, pictures: NDArray[np.uint8], columns: dict[str, list[Any]], step: int
    ) -> None:
        """Pictures [N,H,W,3]; W&B gets a table with the columns (N values each) beside them."""

        def send() -> None:
            if self._kind == "tensorboard":
                tracker = self._accelerator.get_tracker("tensorboard")
                tracker.log_images({name: pictures}, step=step, dataformats="NHWC")
                return
            from wandb import Image

            rows = zip(*columns.values(), strict=True)
            data = [[*row, Image(picture)] for row, picture in zip(rows, pictures, strict=True)]
            tracker = self._accelerator.get_tracker("wandb")
            tracker.log_table(name, columns=[*columns, "picture"], data=data, step=step)

        self._attempt(send)

    def artifact(self, folder: Path, metadata: dict[str, Any], kind: str = "lora") -> None:
        """Hand over a folder of weights, named after run and kind; TensorBoard has no place for one."""

        def send() -> None:
            if self._kind != "wandb":
                return
            from wandb import Artifact

            artifact = Artifact(f"{self._config['run']['name']}-{kind}", type="model", metadata=metadata)
            artifact.add_dir(str(folder))
            self._accelerator.get_tracker("wandb", unwrap=True).log_artifact(artifact)

        self._attempt(send)

    def close(self) -> None:
        """Finish; says how to upload what was recorded offline."""
        self._attempt(self._finish)
        offline = sorted((self._run / "wandb").glob("offline-run-*"))
        if self._kind == "wandb" and self._alive and offline:
            self._console.print(
                "W&B ran offline; upload with:", *(f"  wandb sync {f}" for f in offline), sep="\n"
            )
        self._alive = False

    def _finish(self) -> None:
        # Not accelerate's end_training(): it would take this process alone out of the job's group.
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def _attempt(self, action: Callable[[], object]) -> None:
        if not self._alive or not self._accelerator.is_main_process:
            return
        try:
            action()
        except Exception as error:  # whatever the service throws: a run must not die of its log
            self._alive = False
            self._console.print(
                f"warning: {self._kind} failed ({_reason(error)}); going on without it, metrics.jsonl has "
                "it all"
            )


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def wandb_mode() -> str:
    """Online with a key, else offline; WANDB_MODE decides if it is set."""
    if chosen := os.environ.get("WANDB_MODE"):
        return chosen
    import wandb

    try:
        # Not verified here: without a network that takes minutes.
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception:  # a key that is not one
        return "offline"
