"""The figures of a store, task by task, as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from rfft.feedback.vote_store import VoteStore
from rfft.feedback.votes import TASKS
from rfft.review.agreement import figures
from rfft.types import LABELS

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


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _share(found: Mapping[str, Any] | None) -> str:
    if not found:
        return "not known"
    low, high = found["interval"]
    return f"{found['share']:.0%} of {found['of']} ({low:.0%} to {high:.0%})"


def _cell(text: str) -> str:
    return " ".join(str(text).replace("|", "/").split())
