"""report.html: what a run did, in one file that needs no network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image
from torch import Tensor

from rfft.config.describe import describe_objective
from rfft.config.load import flatten, read_resolved
from rfft.errors import UserError
from rfft.evaluation import store
from rfft.evaluation.charts import charts, data_uri
from rfft.evaluation.tables import MetricRow, kind_of, painted, rows
from rfft.evaluation.verdicts import NETWORKS, recorded_verdicts, verdict_name
from rfft.metrics.verdict import AVAILABLE
from rfft.utils.log import write_atomically

SHOWN_AT_ONCE, SHOWN_AT_MOST = 12, 96  # pairs of a group; pairs in all
THUMBNAIL = 256  # pixels; larger pictures are shrunk for the report
TILES = ("available_rate_rfnet", "available_rate_judge", "alignment", "diversity", "attempts")


@dataclass(frozen=True)
class Picture:
    uri: str
    verdict: str  # "" if no network judged it
    accepted: bool


@dataclass(frozen=True)
class Cell:
    """A product, prompt and seed before and after training; once, if the base model was evaluated alone."""

    prompt: str
    caption: str
    seed: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Group:
    """Pairs with one fate, of which some are shown at once."""

    title: str
    count: int  # in the whole grid
    cells: list[Cell]
    more: list[Cell]


def write_report(run: Path) -> Path:
    """Write RUN/report.html from what lies in the run's folder; parts that are not there are left out."""
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"{run}: no config.yaml here, so no run")
    settings = read_resolved(config)
    if "rfnet" in settings:
        raise UserError(f"{run}: RFNet's runs have no report; their metrics are in {store.EVALUATION}")
    summary = store.read_json(run / store.SUMMARY)
    states = [state for state in store.STATES if summary.get(state)]
    found = [summary[state] for state in states]
    environment = Environment(loader=PackageLoader("rfft"), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        config=settings,
        settings=config.read_text(encoding="utf-8"),
        environment=flatten(store.read_json(run / "environment.json")),
        summary=summary,
        objective=describe_objective(settings),
        states=states,
        networks=NETWORKS,
        tiles=tiles(found) if found else [],
        rows=_rows(found, summary) if found else [],
        painted=painted(found[0]) if found else "",
        groups=groups(run, states) if states else [],
        charts=charts(run / "metrics.jsonl"),
    )
    write_atomically(run / "report.html", page)
    return run / "report.html"


def _rows(states: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[MetricRow]:
    return rows(states[0]) if len(states) == 1 else rows(states[0], states[1], summary["change"])


def tiles(states: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the titles of the metrics one looks at first, and each state's values."""
    names = [name for name in TILES if all(name in state["metrics"] for state in states)]
    return [
        (kind_of(name).title, [kind_of(name).text(state["metrics"][name]["value"]) for state in states])
        for name in names
    ]


def groups(run: Path, states: Sequence[str]) -> list[Group]:
    """Sort the pictures by what became of them, what changed first; empty where something is missing."""
    evaluation = store.read_json(run / store.EVALUATION)
    if not evaluation.keys() >= set(states):
        return []
    try:
        pictures = {state: store.pictures(run, state) for state in states}
    except FileNotFoundError:
        return []
    cells = evaluation["cells"]
    order = sorted(range(len(cells)), key=lambda i: cells[i]["seed"])  # every prompt first
    probabilities = [evaluation[state]["probabilities"] for state in states]
    network = next((name for name in NETWORKS if all(name in found for found in probabilities)), None)
    judged = [found[network] if network else None for found in probabilities]

    def cell(i: int) -> Cell:
        shown = zip(states, judged, strict=True)
        both = [_picture(pictures[state][i], rows_ and rows_[i], bool(rows_)) for state, rows_ in shown]
        return Cell(cells[i]["prompt"], cells[i]["caption"], cells[i]["seed"], both)

    left, found = SHOWN_AT_MOST, []
    for title, members in _fates(order, judged):
        chosen = [cell(i) for i in members[:left]]
        left -= len(chosen)
        found.append(Group(title, len(members), chosen[:SHOWN_AT_ONCE], chosen[SHOWN_AT_ONCE:]))
    return found


def _fates(order: list[int], judged: Sequence[Any]) -> list[tuple[str, list[int]]]:
    """Return titles and the cells with that fate, in order; one group where there is nothing to compare."""
    if len(judged) < 2 or judged[0] is None:
        return [("Before and after" if len(judged) > 1 else "Pictures", order)]
    base, tuned = (recorded_verdicts(rows_) == AVAILABLE for rows_ in judged)
    fixed = [i for i in order if tuned[i] and not base[i]]
    broken = [i for i in order if base[i] and not tuned[i]]
    same = [i for i in order if base[i] == tuned[i]]
    named = [("Fixed: became available", fixed), ("Broken: no longer available", broken), ("Unchanged", same)]
    return [(title, members) for title, members in named if members]


def _picture(image: Tensor, probabilities: Sequence[float] | None, judged: bool) -> Picture:
    """judged: did a network look at it? Its probabilities are None where they were not finite."""
    uri = _picture_uri(image)
    if not judged:
        return Picture(uri, "", accepted=False)
    verdict = int(recorded_verdicts([probabilities])[0])
    name = verdict_name(verdict, len(probabilities or ()))
    if probabilities is not None:
        name += f" {100 * probabilities[verdict]:.0f}\N{NO-BREAK SPACE}%"
    return Picture(uri, name, verdict == AVAILABLE)


def _picture_uri(image: Tensor) -> str:
    """Return small pictures without loss; large ones as thumbnails, to keep the page light."""
    picture, file = Image.fromarray(image.permute(1, 2, 0).numpy()), io.BytesIO()
    if picture.width <= THUMBNAIL // 2:
        picture.save(file, "PNG", optimize=True)
        return data_uri("image/png", file.getvalue())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=88)
    return data_uri("image/jpeg", file.getvalue())
