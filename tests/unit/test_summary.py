"""Metrics of a grid, by hand, and the changes between two of them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from rfft.evaluation import summary
from rfft.evaluation.store import write_json
from rfft.evaluation.tables import NAMED, kind_of, rows, table
from rfft.evaluation.verdicts import changes_by_network, recorded_verdicts, verdict_name
from rfft.metrics.verdict import verdicts_of

CLASSES = {"surface": ["wood", "sand"], "prop": ["none", "cactus", "vase"]}
TWO, THREE = np.arange(2), np.arange(3)
NAN = float("nan")


def values(estimates: summary.Estimates) -> dict[str, float]:
    return {name: estimate.value for name, estimate in estimates.items()}


def test_verdicts() -> None:
    said = {"rfnet": torch.tensor([[0, 1], [0, 4]]), "judge": torch.zeros(2, 2)}
    found = summary.verdict_metrics(said, TWO)
    assert list(found)[:2] == ["available_rate_rfnet", "available_rate_judge"]
    assert {name: e.value for name, e in found.items() if name.endswith("rfnet")} == {
        "available_rate_rfnet": 0.5,
        "space_mismatch_rfnet": 0.25,
        "size_mismatch_rfnet": 0,
        "indistinctiveness_rfnet": 0,
        "shape_hallucination_rfnet": 0.25,
    }
    assert found["available_rate_rfnet"].interval() == (0.5, 0.5)  # both products: one of two


def test_prompts_of_one_product_are_drawn_together() -> None:
    numbers = summary.number_products(["stool", "stool", "lamp", "stool"])
    assert numbers.tolist() == [0, 0, 1, 0]
    said = {"rfnet": torch.tensor([[0, 0], [0, 0], [1, 1], [0, 0]])}
    rate = summary.verdict_metrics(said, numbers)["available_rate_rfnet"]
    assert rate.value == 0.75 and rate.interval() == (0, 1)  # the lamp alone, or stools alone


def test_what_is_not_finite_is_never_available() -> None:
    outputs = torch.tensor([[3.0, 1, 0], [NAN, NAN, NAN], [0, 2, NAN], [0, float("inf"), 0], [0, 2, 1]])
    said = verdicts_of(outputs)
    assert said.tolist() == [0, -1, -1, -1, 1]
    found = values(summary.verdict_metrics({"rfnet": said[:, None]}, np.arange(5)))
    assert found["available_rate_rfnet"] == found["space_mismatch_rfnet"] == 0.2
    assert recorded_verdicts([[0.9, 0.1], None, [0.2, 0.8]]).tolist() == [0, -1, 1]
    assert [verdict_name(i, 5) for i in (0, 4, -1)] == ["available", "shape hallucination", "not finite"]


def test_changes_of_verdicts() -> None:
    base = {"rfnet": torch.tensor([0, 1, 2, 0, -1]), "judge": torch.tensor([0, 0, 0, 0, 0])}
    tuned = {"rfnet": torch.tensor([0, 0, 1, -1, 0]), "judge": torch.tensor([0, 0, 0, 0, 3])}
    assert changes_by_network([base, tuned]) == {
        "rfnet": {"pictures": 5, "available_before": 2, "fixed": 2, "broken": 1},
        "judge": {"pictures": 5, "available_before": 5, "fixed": 0, "broken": 1},
    }


def test_attempts() -> None:
    accepted = torch.tensor([[True, False, False], [False, False, True], [False, False, False]])
    found = summary.attempt_metrics(accepted, THREE)
    assert values(found) == pytest.approx(
        {"attempts": 7 / 3, "success_at_1": 1 / 3, "success_at_2": 1 / 3, "success_at_3": 2 / 3}
    )
    assert found["attempts"].interval() == (1, 3)


def test_a_prop_counts_only_where_one_is_asked_for() -> None:
    asked = [{"surface": "wood", "prop": "none"}, {"surface": "sand", "prop": "vase"}]
    read = {"surface": torch.tensor([[0, 0], [1, 0]]), "prop": torch.tensor([[0, 0], [2, 1]])}
    found = summary.alignment_metrics(read, asked, CLASSES, TWO)
    # prop: not 0.75, as the first product has none, as asked
    assert values(found) == {"alignment": 0.625, "alignment_surface": 0.75, "alignment_prop": 0.5}
    # Either product alone: 1 by its surface, which has no prop; or (0.5 + 0.5) / 2.
    assert found["alignment"].interval() == (0.5, 1)
    assert summary.alignment_metrics({"prop": read["prop"]}, [asked[0]] * 2, CLASSES, TWO) == {}
    unseen = {"surface": torch.tensor([[0, -1], [1, 0]])}  # a picture that is not finite
    assert values(summary.alignment_metrics(unseen, asked, CLASSES, TWO))["alignment_surface"] == 0.5


def test_diversity() -> None:
    features = torch.eye(4).reshape(2, 2, 4)
    assert values(summary.diversity_metrics(features, TWO)) == pytest.approx({"diversity": 1, "vendi": 4})
    assert "diversity" not in summary.diversity_metrics(features[:, :1], TWO)  # it needs two seeds
    features[1, 1] = torch.nan
    assert values(summary.diversity_metrics(features, TWO)) == pytest.approx({"diversity": 1, "vendi": 3})


def test_metrics_of_one_product_have_no_interval() -> None:
    features, reference = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0)), torch.rand(5, 4)
    one = np.zeros(2, dtype=int)
    found = summary.as_json(summary.diversity_metrics(features, one))
    assert list(found["vendi"]) == list(found["diversity"]) == ["value"]
    assert summary.kid_metrics(features, one, reference) == {}
    low, high = summary.diversity_metrics(features, TWO)["vendi"].interval()  # type: ignore[misc]
    assert low < high


def test_json_has_no_nan(tmp_path) -> None:
    found = summary.mean_metrics("product_psnr", torch.full((2, 2), torch.nan), TWO)
    assert summary.as_json(found) == {}
    write_json(tmp_path / "a.json", {"a": [NAN, {"b": float("inf"), "c": 1.5}], "d": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, {"b": None, "c": 1.5}], "d": 2}


def test_the_table_fits_a_terminal() -> None:
    """Of 80 columns, with one line for each metric and widest numbers; better and worse have colours."""
    networks = {name: torch.zeros(2, 2, dtype=torch.long) for name in ("rfnet", "judge")}
    names = [
        *summary.verdict_metrics(networks, TWO),
        *NAMED,
        "alignment_surface",
        "success_at_1",
        "success_at_10",
    ]
    widest = {"value": 1.0, "low": 0.0, "high": 1.0}
    states = [{"metrics": dict.fromkeys(names, widest), "not_finite": n, "images": 96} for n in (0, 3)]
    down = {"value": -0.99999, "low": -1.0, "high": -0.99998}
    change = dict.fromkeys(names, down)
    console = Console(
        width=80, record=True, file=io.StringIO(), color_system="truecolor", force_terminal=True
    )
    console.print(table(*states, change))
    styled = console.export_text(styles=True, clear=False)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    shown = [name for name in names if name != "success_at_1"]
    titles = [f"{kind_of(name).title} {kind_of(name).arrow}" for name in shown]
    body = [line for line in lines if any(line.strip().startswith(title) for title in titles)]
    assert len(body) == len(titles) and all(line.rstrip().endswith(")") for line in body)
    assert "pictures not finite ↓" in "".join(lines) and "+3" in "".join(lines)
    assert [row.better for row in rows(*states, change)][:3] == [
        False,
        False,
        True,
    ]  # fewer faults are better
    unclear = change | {names[0]: {"value": 0.2, "low": -0.1, "high": 0.5}}
    assert rows(*states, unclear)[0].better is None
    assert "\x1b[32m" in styled and "\x1b[31m" in styled
