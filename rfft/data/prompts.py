"""Prompt files in the official form: what is to be painted around products."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfft.data.json_text import (
    image_scale,
    optional_text,
    parse_json,
    read_text,
    refuse_unknown,
    required_text,
)
from rfft.errors import UserError, require

KEYS = ("prompt", "negative_prompt", "image_scale", "matting", "flag")
COLOURS = ("cream", "beige", "ivory", "light grey", "pale pink", "pale yellow", "sky blue", "sage green")


@dataclass(frozen=True)
class Prompt:
    """An entry of a prompt file."""

    text: str
    negative: str = ""
    image_scale: float | None = None  # the product's longer side as a share of the canvas
    matting: bool = False  # a product cut off by its picture's border keeps the picture's framing
    has_colour: bool = False  # the official `flag`: a colour goes into {}

    def fill(self, rng: random.Random) -> str:
        """Return the text, with a colour drawn for {} where there is one."""
        return self.text.replace("{}", rng.choice(COLOURS)) if self.has_colour else self.text


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a JSON list of objects prompt, negative_prompt, image_scale, matting, flag (the official form)."""
    path = Path(path)
    rows = parse_json(read_text(path), path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a JSON list of objects with prompt and negative_prompt")
    return [_prompt(row, f"{path}: entry {number}") for number, row in enumerate(rows, start=1)]


def _prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with prompt and negative_prompt")
    refuse_unknown(row, KEYS, where)
    for key in ("matting", "flag"):
        if row.get(key, 0) not in (0, 1):  # True and False are 1 and 0
            raise UserError(f"{where}: {key} is {row[key]!r}; it must be 0 or 1")
    prompt = Prompt(
        text=required_text(row, "prompt", where),
        negative=optional_text(row, "negative_prompt", where) or "",
        image_scale=image_scale(row, where),
        matting=bool(row.get("matting", False)),
        has_colour=bool(row.get("flag", 0)),
    )
    with_gap = "{}" in prompt.text
    require(with_gap or not prompt.has_colour, f"{where}: flag is 1, but the prompt has no {{}} for a colour")
    require(prompt.has_colour or not with_gap, f"{where}: {{}} in the prompt needs a colour: set flag to 1")
    return prompt
