"""RFFT: fine-tune advertising-image generators on human feedback.

This is the public API (docs/api.md); the command line calls the same functions. Nothing heavy is imported
before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rfft.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from rfft.config.schema import Config
    from rfft.generation.generated import GeneratedImage
    from rfft.metrics.verdict import Verdict

__all__ = [
    "TrainResult", "UserError", "__version__", "config_from", "evaluate", "export", "generate", "load_config",
    "score", "train",
]  # fmt: skip
__version__ = "0.1.0"

ExportFormat = Literal["diffusers", "kohya", "peft", "merged"]


@dataclass(frozen=True)
class TrainResult:
    """What a training has left: its folder, and the metrics of its summary.json."""

    path: Path
    summary: dict[str, Any]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, complete and check a config: a YAML file, or the name of a shipped one ("tiny").

    `overrides` are settings of the form "trainer.steps=2". Raises UserError, a line that names the mistake
    and its fix.
    """
    from rfft.config.load import load_config as load

    return load(path, overrides)


def config_from(settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Return the default config changed by a mapping, nested or with dotted keys, and checked like a file."""
    from rfft.config.load import config_from as make

    return make(settings, overrides)


def train(config: Config) -> TrainResult:
    """Fine-tune the generator that a config describes, or go on with its run where it was cut off.

    Raises UserError for a mistake, and rfft.errors.Interrupted after a signal, with all that was done saved.
    """
    from rfft.evaluation.store import SUMMARY, read_json
    from rfft.training import trainer

    run = trainer.train(config)
    return TrainResult(run, read_json(run / SUMMARY))


def evaluate(
    run: str | Path,
    overrides: Sequence[str] = (),
    best: bool = False,
    step: int | None = None,
    out: str | Path | None = None,
    base: str | Path | None = None,
) -> dict[str, Any]:
    """Compare base and tuned model of a run on the same products, prompts and noise; return the summary.

    `run` is the folder of a run, or a config, whose base model is measured alone then. `best` and `step`
    choose a checkpoint other than the one that the run exported; `out` is a folder for the metrics, which
    another grid or checkpoint needs; `base` is a folder from which the base model's metrics on this grid are
    taken. Raises UserError.
    """
    from rfft.evaluation import runs
    from rfft.training.tracking import track_evaluation

    folder, known = None if out is None else Path(out), None if base is None else Path(base)
    if Path(run).is_dir():
        config = load_config(config_of(Path(run)), overrides)
        runs.evaluate(config, Path(run), best, step, folder, known)
        return track_evaluation(config, folder or Path(run))
    if best or step is not None or known is not None:
        raise UserError(
            f"{run} is a config, whose base model alone is evaluated: --best, --step and --base are for runs"
        )
    config = load_config(run, overrides)
    return track_evaluation(config, runs.evaluate_base(config, folder))


def export(
    run: str | Path,
    format: ExportFormat = "diffusers",
    out: str | Path | None = None,
    best: bool = False,
    step: int | None = None,
) -> Path:
    """Write a run's weights in the form that other tools load, with a model card; return the folder.

    `out` is RUN/export/FORMAT by default; `best` and `step` as in evaluate(). Raises UserError.
    """
    from rfft.evaluation.runs import export_run

    config_of(Path(run))
    return export_run(Path(run), format, None if out is None else Path(out), best, step)


def generate(
    config: Config,
    products: str | Path | None = None,
    prompts: str | Path | None = None,
    lora: str | Path | None = None,
    out: str | Path | None = None,
) -> list[GeneratedImage]:
    """Paint each product again with new noise until RFNet accepts; return the pictures in order.

    `products` and `prompts` take the place of the config's data.products and data.prompts; `lora` is a folder
    that export() wrote. `out` is a new folder for pictures, manifest and contact sheet; without it the
    pictures are kept in memory alone. Raises UserError.
    """
    from rfft.generation.generated import output_folder, read_generated
    from rfft.generation.recurrent import generate as paint

    named = {"products": products, "prompts": prompts}
    changes: dict[str, Any] = {name: str(value) for name, value in named.items() if value is not None}
    with output_folder(out) as (folder, kept):
        paint(
            replace(config, data=replace(config.data, **changes)),
            None if lora is None else Path(lora),
            folder,
        )
        return read_generated(folder, in_memory=not kept)


def score(
    pictures: Sequence[str | Path | Image | Tensor],
    products: Sequence[str | Path | Image | Tensor],
    captions: Sequence[str],
    rfnet: str = "rf-tiny-rfnet",
) -> list[Verdict]:
    """Ask RFNet for its verdict on each picture, whoever painted it: label and class probabilities.

    Pictures [3,H,W] and RGBA products [4,H,W] as they lie in them are paths, PIL pictures, or tensors in
    [0,1]; captions say what the products are. Raises UserError.
    """
    from rfft.generation.score import score as ask

    return ask(pictures, products, captions, rfnet)


def config_of(run: Path) -> Path:
    """Return the config.yaml of a run's folder; raises UserError if it is none."""
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: no config.yaml here, so no run; run folders are made by `rfft train`")
    return file
