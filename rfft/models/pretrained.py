"""Save and load of our own networks, a folder with config.json and model.safetensors; and others' weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from rfft.errors import UserError, require
from rfft.models.hub import fetch, is_hub_id

if TYPE_CHECKING:
    from typing_extensions import Self

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
Network = TypeVar("Network", bound=nn.Module)
ASSETS = Path(__file__).resolve().parent.parent / "assets"


class PretrainedModule(nn.Module):
    """A module built from one dataclass, which subclasses name in `config_class`."""

    config_class: ClassVar[type]
    source: Path | None = None  # the folder that it was loaded from

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors, with the weights in the precision that they have.

        Raises a UserError for numbers that are not finite.
        """
        folder = Path(folder)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        broken = [name for name, value in state.items() if not value.isfinite().all()]
        require(not broken, f"{folder}: not written, as {', '.join(broken)} is not finite")
        folder.mkdir(parents=True, exist_ok=True)
        config = {"architecture": type(self).__name__, **dataclasses.asdict(self.config)}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """Load a network as float32 in eval mode.

        `name` is a folder, an embedded network (rfft/assets/NAME), or a hub id (owner/name), for which
        `options` may be those of huggingface_hub.snapshot_download: revision, token, cache_dir and so on.
        Raises UserError if there is no such network, or if its weights do not fit.
        """
        folder = find_folder(name, **options)
        model = cls(read_config(cls, folder))
        try:
            state = load_file(folder / WEIGHTS_NAME)
            model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        except FileNotFoundError as error:
            raise UserError(f"{folder}: {WEIGHTS_NAME} is missing") from error
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{folder / WEIGHTS_NAME} does not fit {cls.__name__}: {reason}") from error
        model.source = folder
        return model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return next(self.parameters()).dtype


def find_folder(name: str | Path, **options: Any) -> Path:
    """Return a network's folder: the one named, that of an embedded one, or the local copy of a hub id's.

    `options`: see rfft.models.hub.fetch. Raises UserError where there is none.
    """
    for folder in (Path(name), ASSETS / name):
        if (folder / CONFIG_NAME).is_file():
            return folder
    if is_hub_id(name) and (fetched := fetch(str(name), **options) / CONFIG_NAME).is_file():
        return fetched.parent
    raise UserError(f"{name}: no such network; give a folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}")


def read_json(folder: Path) -> dict[str, Any]:
    """The values in a folder's config.json."""
    try:
        values = json.loads((folder / CONFIG_NAME).read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / CONFIG_NAME}, line {error.lineno}: broken JSON ({error.msg})") from error
    if not isinstance(values, dict):
        raise UserError(f"{folder / CONFIG_NAME}: expected a JSON object")
    return values


def read_config(cls: type[PretrainedModule], folder: Path) -> Any:
    """The `config_class` instance stored in a folder's config.json."""
    values = read_json(folder)
    if (architecture := values.pop("architecture", None)) != cls.__name__:
        raise UserError(f"{folder} holds {architecture or 'something else'}, not {cls.__name__}")
    try:
        return cls.config_class(**values)
    except TypeError as error:
        raise UserError(f"{folder / CONFIG_NAME} does not fit {cls.__name__}: {error}") from error


def halved(network: Network) -> Network:
    """Return a copy with parameters as float16.

    Running statistics stay as they are: a variance can be far above 65504, the largest number of float16.
    """
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.half()
    return network


def tokenizer_of(source: str | Path) -> Any:
    """That of a folder or hub id; where there is none, transformers 5 makes one up that knows no word."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer in {source}: save the network's own into it") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError(f"no tokenizer in {source} that knows a word: save the network's own into it")
    return tokenizer


def load_part(setting: str, kind: Any, path_or_id: str, dtype: torch.dtype) -> Any:
    """Load a network that has a setting of its own; raises UserError that names it."""
    try:
        return kind.from_pretrained(path_or_id, torch_dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load_part(setting, path_or_id, error) from error


def skeleton_part(setting: str, kind: Any, path_or_id: str) -> Any:
    """Make a network that has a setting of its own from its config file; raises UserError that names it."""
    try:
        return from_config(kind, path_or_id)
    except (OSError, ValueError) as error:
        raise cannot_load_part(setting, path_or_id, error) from error


def from_config(kind: Any, source: str, **where: str) -> Any:
    """Make a diffusers network or scheduler from its config file, with fresh weights."""
    return kind.from_config(kind.load_config(source, **where))


def cannot_load_part(setting: str, name: str, error: Exception) -> UserError:
    """Return the error for a network that has a setting of its own."""
    return UserError(f"{setting} {name}: neither a folder nor a hub id that loads ({why(error)})")


def why(error: Exception) -> str:
    """The first line of what a library says on loading, and what to do where it finds no safetensors."""
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
    if not re.search(r"(file named|the necessary) \S*safetensors", reason):
        return reason
    return f"{reason}; other weights are not read: convert them to safetensors, see docs/faults.md"


def read_weights(file: Path, what: str) -> dict[str, Tensor]:
    """Tensors by name on the CPU, of safetensors, or a published .pt or .pth; `what` it is, for errors."""
    try:
        published = file.suffix in (".pth", ".pt")
        return torch.load(file, map_location="cpu", weights_only=True) if published else load_file(file)
    except (OSError, EOFError, SafetensorError, RuntimeError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{file}: no weights of {what} can be read from it ({reason})") from error
