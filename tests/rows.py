"""What a run has written into its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

Row = dict[str, float]


def rows(folder: Path | str, speed: bool = False) -> list[Row]:
    """The rows of a run's folder; without those scalars that no two runs share (perf/*), unless asked for."""
    found = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in row.items() if speed or not name.startswith("perf/")} for row in found]
