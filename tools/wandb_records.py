"""What W&B's files of an offline run hold: RUN/wandb/offline-run-*/run-ID.wandb, read without W&B's server.

The file is a log in LevelDB's form (blocks of 32 KiB, chunks with checksum, length and type) of protocol
buffers; W&B's package has the schema of these, but no reader in Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK, CHUNK = 7, 32768, 7  # bytes: of the file, of a block, of a chunk's own header
WHOLE, LAST = 1, 4  # types of the chunk that ends a record


@dataclass
class OfflineRun:
    """One start of a run, as it was recorded."""

    run: Any = None  # wandb's RunRecord: run_id, project, display_name, run_group, tags, resume, sweep_id
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # a dict for each call of log()
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # MetricRecord by name or glob
    artifacts: list[Any] = field(default_factory=list)  # ArtifactRecord: name, type, digest, use_after_commit

    def rows(self, name: str) -> list[tuple[int, Any]]:
        """Step and value of every row that has the metric."""
        return [(row["step"], row[name]) for row in self.history if name in row]


def read_offline_run(path: Path) -> OfflineRun:
    """Read one .wandb file."""
    found = OfflineRun()
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            _fill(found.config, record.run.config.update)
        elif kind == "config":
            _fill(found.config, record.config.update)
        elif kind == "history":
            found.history.append({})
            _fill(found.history[-1], record.history.item)
        elif kind == "summary":
            _fill(found.summary, record.summary.update)
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
    return found


def find_offline_runs(run: Path) -> list[OfflineRun]:
    """Read all starts of the run in a run's folder, in their order."""
    return [read_offline_run(file) for file in sorted((run / "wandb").glob("offline-run-*/*.wandb"))]


def read_table(artifact: Any, name: str) -> list[dict[str, Any]]:
    """Read the rows of a table from its artifact; a picture's cell becomes the path of its file."""
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    table = json.loads(Path(files[f"{name}.table.json"]).read_text())
    rows = []
    for row in table["data"]:
        cells = [files.get(c["path"], c["path"]) if isinstance(c, dict) else c for c in row]
        rows.append(dict(zip(table["columns"], cells, strict=True)))
    return rows


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file, wandb's protocol buffers `Record`."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import

    data, position, parts = path.read_bytes(), HEADER, b""
    while position + CHUNK <= len(data):
        left = BLOCK - position % BLOCK
        if left < CHUNK:  # no room for another chunk: padding
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + CHUNK : position + CHUNK + length]
        position += CHUNK + length
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _fill(values: dict[str, Any], items: Any) -> None:
    """Put items into nested dicts; a nested key is a list of names, each may have slashes and dots."""
    for item in items:
        *outer, name = list(item.nested_key) or [item.key]
        level = values
        for key in outer:
            level = level.setdefault(key, {})
        level[name] = json.loads(item.value_json)
