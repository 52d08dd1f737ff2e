"""What a run was made of: its inputs with digests, for a tracker's lineage; nothing is copied."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rfft.config.load import flatten
from rfft.data.dataset import KNOWN, evaluation_source, parse_source
from rfft.models.pretrained import ASSETS
from rfft.utils.checkpoint import sha256

TRACKER_FILE = "tracker.json"  # in the folder of a run that has a tracker
Kind = Literal["model", "dataset"]
INPUTS: dict[str, tuple[str, Kind]] = {  # settings that name an input: its role and kind
    "model.bundle": ("bundle", "model"),
    "model.controlnet": ("controlnet", "model"),
    "reward.rfnet": ("rfnet", "model"),
    "data.products": ("products", "dataset"),
    "data.prompts": ("prompts", "dataset"),
    "evaluate.products": ("products", "dataset"),
    "evaluate.prompts": ("prompts", "dataset"),
    "evaluate.validation.products": ("products", "dataset"),
    "evaluate.validation.prompts": ("prompts", "dataset"),
    "data.train": ("feedback", "dataset"),  # of RFNet's training
    "data.validation": ("feedback", "dataset"),
}


@dataclass(frozen=True)
class Input:
    """An input of a run; two runs with the same input have equal ones, on whatever machine."""

    name: str
    kind: Kind
    source: str  # as the config names it
    contents: dict[str, Any] = field(default_factory=dict)  # what it consists of, with digests
    folder: Path | None = None  # an output of another tracked run: these files are the artifact themselves


def inputs(config: Mapping[str, Any]) -> list[Input]:
    """List the networks and data that a resolved config names, each once."""
    settings, found = flatten(config), {}
    if settings.get("data.products") and not settings.get("evaluate.products"):
        settings["evaluate.products"] = evaluation_source(
            settings["data.products"], settings.get("data.holdout")
        )
    for key, (role, kind) in INPUTS.items():
        named = settings.get(key)
        for source in named if isinstance(named, list) else [named]:
            if source:
                item = describe(role, kind, _whole(source) if role == "products" else source)
                found[item.name] = item
    return list(found.values())


def _whole(products: str) -> str:
    """Return the folder that a share of products is held out of; AdWorld's splits are drawn apart."""
    name, _ = parse_source(products)
    return products if name in KNOWN else name


def describe(role: str, kind: Kind, source: str) -> Input:
    """Describe one input: a file, a folder, an embedded network, a hub id, or adworld:SPLIT.

    Every file of a model has its own digest; of a folder of data names and sizes are digested, as reading a
    million pictures would take hours.
    """
    path = next((path for path in (Path(source), ASSETS / source) if path.exists()), None)
    if path is None and kind == "model":
        path = _hub_snapshot(source)
    if path is not None and path.is_dir() and (path.parent / TRACKER_FILE).is_file():
        return Input(output_name(path.resolve().parent.name, path.name), kind, source, folder=path)
    name = _plain(f"{role}-{Path(source).name if path else source}")
    return Input(name, kind, source, {"source": source} if path is None else _contents(path, kind))


def _contents(path: Path, kind: Kind) -> dict[str, Any]:
    if path.is_file():
        return {"sha256": sha256(path)}
    if kind == "model":
        return {"files": {name: _digest(file) for name, file in _files(path)}}
    listing = "".join(f"{name} {file.stat().st_size}\n" for name, file in _files(path))
    return {"files": listing.count("\n"), "listing": hashlib.sha256(listing.encode()).hexdigest()}


def output_name(run: str, kind: str) -> str:
    """Name the weights that a run leaves, as an artifact."""
    return _plain(f"{run}-{kind}")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative names and paths of all files below a folder, hidden ones left out."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), file


def _digest(file: Path) -> str:
    """The sha256 of a file; the hub's cache calls its files by a digest, so that they need not be read."""
    target = file.resolve()
    return target.name if target.parent.name == "blobs" else sha256(target)


def _hub_snapshot(source: str) -> Path | None:
    """The folder in the hub's cache that a hub id was loaded from, if it is there."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (OSError, ValueError):
        return None


def _plain(name: str) -> str:
    """The name with nothing in it but what W&B allows."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")
