"""A run in W&B, online or offline: typed config, metrics by step, tables that can be joined, lineage."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rfft.config.load import flatten
from rfft.evaluation.tracked import PictureTable, best_of
from rfft.training.lineage import TRACKER_FILE, Input
from rfft.utils.agents import in_wandb_sweep
from rfft.utils.log import messages, write_atomically

INIT, FINISH = 60.0, 300.0  # seconds that W&B has to answer at first, and for the last uploads
STEP = "step"  # the x axis of everything: W&B's own step counts calls of log()
EVALUATIONS = ("eval", "val")  # groups whose summary is the best value, and the last one
LARGE = 256  # pixels; larger pictures are stored as JPEG
STAGING = "WANDB_DATA_DIR"  # where W&B keeps what artifacts hold until it is uploaded


class WandbRun:
    """The run of W&B that belongs to a run's folder; started again, it goes on in the same one."""

    def __init__(self, run: Path, config: dict[str, Any]) -> None:
        """Start, or go on; offline if there is no key, or W&B cannot be reached. `config` is resolved."""
        self._folder, self._config = run, config
        self._defined: set[str] = set()
        self._staging = os.environ.get(STAGING)
        if self._staging is None:  # or an offline run would need somebody's home to be uploaded
            os.environ[STAGING] = str((run / "wandb").resolve())
        try:
            self._run = self._start_where_possible(wandb_mode())
        except BaseException:
            self._forget_staging()
            raise
        write_atomically(run / TRACKER_FILE, json.dumps({"wandb": self._run.id}) + "\n")
        self._define_metrics()

    def _start_where_possible(self, mode: str) -> Any:
        try:
            return self._start(mode)
        except Exception as error:  # unreachable, or the key is refused
            if mode != "online":
                raise
            messages().print(f"warning: W&B cannot be reached ({first_line(error)}); recording offline")
            return self._start("offline")

    def _start(self, mode: Any) -> Any:
        import wandb

        tracker, own = self._config["tracker"], {}
        if not in_wandb_sweep():  # there its agent has said both
            own = {"project": tracker["project"], "id": self._id()}
        return wandb.init(
            **own,
            name=self._config["run"]["name"],
            group=tracker["group"],
            tags=tracker["tags"],
            config=flatten(self._config),
            allow_val_change=True,
            resume="allow",
            dir=str(self._folder.resolve()),  # its service may have been started in another folder
            mode=mode,
            # Without a network it would wait at the end for ever; what is not sent stays on disk.
            settings=wandb.Settings(
                silent=True, init_timeout=INIT, finish_timeout=FINISH, finish_timeout_raises=True
            ),
        )

    def _id(self) -> str:
        """The id kept in the run's folder, or a new one."""
        file = self._folder / TRACKER_FILE
        return str(json.loads(file.read_text())["wandb"]) if file.exists() else uuid.uuid4().hex[:12]

    def _define_metrics(self) -> None:
        self._run.define_metric(STEP, hidden=True)
        for group in ("train/*", *(f"{name}/*" for name in EVALUATIONS), "samples"):
            self._run.define_metric(group, step_metric=STEP)
        for state in ("base/*", "tuned/*", "change/*"):  # columns of the runs' table, no curves
            self._run.define_metric(state, step_metric=STEP, hidden=True)

    def log(self, scalars: dict[str, float], step: int) -> None:
        """Log scalars of a step; an evaluation's summary has the best value, the highest or the lowest."""
        for name in scalars.keys() - self._defined:
            group, _, metric = name.partition("/")
            if group in EVALUATIONS:
                self._run.define_metric(name, step_metric=STEP, summary=f"{best_of(metric)},last")
            self._defined.add(name)
        self._run.log({**scalars, STEP: step})

    def pictures(self, name: str, pictures: NDArray[Any], captions: Sequence[str], step: int) -> None:
        """Log pictures [N,H,W,3] with captions."""
        shown = [_image(picture, caption) for picture, caption in zip(pictures, captions, strict=True)]
        self._run.log({name: shown, STEP: step})

    def table(self, name: str, table: PictureTable, step: int) -> None:
        """Log a table whose cells may be pictures."""
        from wandb import Table

        data = [[_image(cell) if hasattr(cell, "shape") else cell for cell in row] for row in table.rows]
        self._run.log({name: Table(columns=list(table.columns), data=data), STEP: step})

    def use(self, item: Input) -> None:
        """Declare an input: an artifact of its digests, or of the files that another run has logged."""
        artifact = _artifact(item.name, item.kind, {"source": item.source})
        if item.folder is not None:
            _add_files(artifact, item.folder)
        else:
            with artifact.new_file("contents.json") as file:
                json.dump(item.contents, file, indent=1, sort_keys=True)
        if self._run.offline:
            # use_artifact() wants a server; `wandb sync` sends the same record.
            self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        else:
            self._run.use_artifact(artifact)

    def output(self, name: str, folder: Path, metadata: dict[str, Any]) -> None:
        """Hand over a folder of weights."""
        artifact = _artifact(name, "model", metadata)
        _add_files(artifact, folder)
        self._run.log_artifact(artifact)

    def finish(self) -> None:
        """Finish, and say how to upload what was recorded offline."""
        try:
            self._run.finish()
        finally:
            self._forget_staging()
        if list((self._folder / "wandb").glob("offline-run-*")):
            messages().print(
                f"W&B ran offline; upload with: wandb sync {self._folder / 'wandb'}", soft_wrap=True
            )

    def _forget_staging(self) -> None:
        if self._staging is None:
            os.environ.pop(STAGING, None)


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


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _image(picture: NDArray[Any], caption: str | None = None) -> Any:
    from wandb import Image

    return Image(picture, caption=caption, file_type="jpg" if max(picture.shape) > LARGE else "png")


def _artifact(name: str, kind: str, metadata: dict[str, Any]) -> Any:
    from wandb import Artifact

    return Artifact(name, type=kind, metadata=metadata)


def _add_files(artifact: Any, folder: Path) -> None:
    """The files as they lie there: nothing is copied, so they must stay until they are uploaded."""
    folder = folder.resolve()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
