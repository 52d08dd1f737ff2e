"""The Hugging Face hub: fetch a network's folder, upload one; what goes wrong there is told in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, snapshot_download

from rfft.errors import UserError, disk_problem

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name
# A network, its tokenizer and its report; nothing that would have to be run or unpickled.
FETCHED = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")


def is_hub_id(name: str | Path) -> bool:
    """Tell whether a name has the form owner/name and is no folder here."""
    return HUB_ID.fullmatch(str(name)) is not None and not Path(name).is_dir()


def fetch(repo_id: str, **options: Any) -> Path:
    """Return the local copy of a repository on the hub, downloading what is new.

    `options` are those of huggingface_hub.snapshot_download: revision, token, cache_dir, local_files_only.
    """
    with hub_errors(f"{repo_id}: neither a folder nor a hub id that loads"):
        return Path(snapshot_download(repo_id, allow_patterns=list(FETCHED), **options))


def upload(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload a folder into the repository `repo_id`, made if it is not there; return the commit's URL.

    `private` says who may see a repository that is made; one that is there stays as it is.
    """
    with pushing(repo_id):
        api = HfApi()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload by RFFT"))


@contextmanager
def pushing(repo_id: str) -> Iterator[None]:
    """Turn what goes wrong while a repository is written into a UserError that says what to do."""
    advice = "; log in with `hf auth login` (a token that may write), and see whether the network is there"
    with hub_errors(f"{repo_id}: cannot be pushed to the hub", advice):
        yield


@contextmanager
def hub_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn the hub's errors (no network, no token, no such repository) into a UserError of one line."""
    try:
        yield
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:
        if isinstance(error, OSError) and disk_problem(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"{what} ({reason}){advice}") from error
