"""The Hugging Face hub for tests, in place of what goes over the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from rfft.models import hub


class Repository:
    """Keeps what is uploaded in a folder, OWNER/NAME, from which it is fetched again."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.options = folder, {}
        for name in ("create_repo", "upload_folder"):
            call = getattr(self, name)
            monkeypatch.setattr(HfApi, name, lambda api, *names, call=call, **given: call(*names, **given))
        monkeypatch.setattr(hub, "snapshot_download", lambda repo_id, **_: str(self.folder / repo_id))

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.options |= options
        return type("RepoUrl", (), {"repo_id": repo_id})

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        shutil.copytree(folder_path, self.folder / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/1"
