"""The tables of what `rfft adworld assess --stress` finds (stress.json), for MODEL_CARD.md."""

from collections.abc import Iterator, Mapping
from typing import Any

from rfft.evaluation.comparison_tables import markdown_table

NAMES = {
    "macro_f1": "macro F1",
    "ap_available": "AP(available)",
    "kappa_with_labels": "kappa with labels",
    "calibration_error": "calibration error",
}


def stress_tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of one network's stress.json."""
    yield _sources(found["sources"])
    tested = [name.partition("/")[2] for name in found if name.startswith("changed/")]
    yield _changes({source: found[f"changed/{source}"] for source in tested})
    yield _attack(found["attack/test"])
    for source in tested:
        yield _reliability(source, found[f"reliability/{source}"])
        yield _styles(source, found[f"styles/{source}"])


def _sources(found: Mapping[str, Mapping[str, float]]) -> str:
    classes = [name for name in next(iter(found.values())) if name.startswith("f1_")]
    header = ["scenes", *NAMES.values(), *(f"F1 {name[3:].replace('_', ' ')}" for name in classes)]
    rows = [[source, *(f"{row[n]:.3f}" for n in (*NAMES, *classes))] for source, row in found.items()]
    return markdown_table([header, *rows])


def _changes(found: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(found.values())))
    rows = [[source, *(f"{100 * row[name]:.1f} %" for name in names)] for source, row in found.items()]
    return markdown_table([["verdicts changed by", *names], *rows])


def _attack(found: Mapping[str, float]) -> str:
    names = [name for name in found if name != "refused"]
    shares = [f"{100 * found[name]:.1f} %" for name in names]
    return markdown_table([["refused pictures", *names], [f"{found['refused']:.0f}", *shares]])


def _reliability(source: str, rows: list[Mapping[str, float]]) -> str:
    header = [f"{source}: confidence", *(f"{row['confidence']:.2f}" for row in rows)]
    right = ["right", *(f"{row['right']:.2f}" for row in rows)]
    return markdown_table([header, right, ["count", *(f"{row['count']:.0f}" for row in rows)]])


def _styles(source: str, found: Mapping[str, Mapping[str, float]]) -> str:
    rows = [[name, f"{100 * row['right']:.0f} %", f"{row['count']:.0f}"] for name, row in found.items()]
    return markdown_table([[f"{source}: how it was drawn", "right", "of"], *rows])
