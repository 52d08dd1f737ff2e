"""Values of published config files: what of a base can be had without its weights."""

from __future__ import annotations

import json
from pathlib import Path

FILES = Path(__file__).parent


def write(name: str, folder: Path) -> None:
    """Write the config files of a base, and of the ControlNet that its shipped config names, to a folder."""
    files = json.loads((FILES / f"{name}.json").read_text())
    files["model_index.json"]["controlnet"] = ["diffusers", files["controlnet/config.json"]["_class_name"]]
    for path, values in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
