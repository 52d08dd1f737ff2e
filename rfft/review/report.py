"""The figures of a store, task by task, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from rfft.evaluation.store import write_json
from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import TASKS
from rfft.review.agreement import figures
from rfft.types import LABELS
from rfft.utils.log import write_atomically

TEMPLATE = Path(__file__).with_suffix(".md.j2")


def read_figures(store: VoteStore) -> dict[str, Any]:
    """Return the figures of every task that has votes."""
    pictures = store.pictures()
    voted = {task: store.votes(task) for task in TASKS}
    return {task: figures(task, votes, pictures) for task, votes in voted.items() if votes}


def to_markdown(found: Mapping[str, Any]) -> str:
    """Return the figures as tables; names of raters and runs cannot break out of them."""
    environment = Environment(autoescape=True, keep_trailing_newline=True)
    environment.filters |= {"number": _number, "share": _share, "cell": _cell}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        tasks=found, labels=[label.replace("_", " ") for label in LABELS]
    )


def write_report(out: Path, found: Mapping[str, Any], markdown: str) -> None:
    """Write the figures as report.json and report.md into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", found)
    write_atomically(out / "report.md", markdown)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _share(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "not known"
    low, high = found["interval"]
    return f"{found['share']:.0%} of {found['of']} ({low:.0%} to {high:.0%})"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "/").split())
