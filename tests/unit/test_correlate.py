"""Metrics against people: Spearman's correlation over models, its intervals, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from rfft.errors import UserError
from rfft.evaluation import store
from rfft.feedback.votes import Picture, Vote
from rfft.metrics.estimate import mean_estimate
from rfft.review.correlate import correlate, spearman, to_markdown
from rfft.review.sources import place_of

PRODUCTS = 6


def test_spearman_is_scipys() -> None:
    first, second = np.random.default_rng(0).integers(5, size=(2, 20, 7)).astype(float)
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(first, second), expected)
    assert np.isnan(spearman(np.ones((1, 3)), np.array([[1.0, 2, 3]]))).all()


def write_run(folder: Path, quality: float) -> None:
    """A run of two states on six products: one figure that is `quality`, and one that is its opposite."""
    folder.mkdir()
    cells = [{"product": f"p{i}", "prompt": "x", "seed": 0, "id": str(i)} for i in range(PRODUCTS)]
    known: dict = {"cells": cells, "grid": {}, "intervals": {}}
    for state, value in (("base", quality), ("tuned", quality + 0.05)):
        spread = np.linspace(-0.01, 0.01, PRODUCTS)
        estimates = {
            "alignment": mean_estimate(value + spread, np.arange(PRODUCTS)),
            "kid": mean_estimate(-value + spread, np.arange(PRODUCTS)),
        }
        known[state] = {"metrics": {name: {"value": e.value} for name, e in estimates.items()}}
        store.save_estimates(folder, state, estimates)
    (folder / store.EVALUATION).write_text(json.dumps(known))


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / name for name in "ab"]
    for folder, quality in zip(folders, (0.3, 0.6), strict=True):
        write_run(folder, quality)
    return folders


def picture(source: str, number: int) -> Picture:
    place = place_of({"product": f"p{number}", "prompt": "x", "seed": 0})
    return Picture(f"{source}-{number}", Path(f"{number}.png"), place=place, source=source)


def test_metrics_are_ranked_by_people(runs: list[Path]) -> None:
    """People score four models 1 to 4, in the order of `alignment`, and compare two of them."""
    sources = ["a/base", "a/tuned", "b/base", "b/tuned"]
    shown = [picture(source, i) for source in sources for i in range(PRODUCTS)]
    pictures = {p.id: p for p in shown}
    votes = [
        Vote("scores", p.id, "ann", {"score": 1 + sources.index(p.source), "defects": []}) for p in shown
    ]
    gsb = Vote("gsb", "a/base-0", "ann", {"overall": "bad"}, "a/tuned-0")
    found = correlate(runs, [*votes, gsb], pictures)
    by_metric = {row["metric"]: row for row in found["correlations"]}
    assert found["people"]["score"] == {source: 1 + i for i, source in enumerate(sources)}
    assert found["people"]["GSB overall"] == {"a/base": -1, "a/tuned": 1}  # two models: nothing to rank
    assert by_metric["alignment"]["spearman"] == pytest.approx(1)
    assert by_metric["kid"]["spearman"] == pytest.approx(-1)
    assert by_metric["alignment"]["low"] == pytest.approx(1) and by_metric["alignment"]["models"] == 4
    # All four draws are of one model once in 4^3 times.
    assert 2000 * (1 - 1 / 64) - 40 < by_metric["alignment"]["resamples"] < 2000
    assert "| alignment | 1.00 | 1.00 to 1.00 | 4 |" in to_markdown(found)


def test_what_cannot_be_correlated(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few of these models for a ranking, 3 are needed: none"):
        correlate(runs, [], {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not evaluated yet: rfft evaluate"):
        correlate([tmp_path / "empty"], [], {})
    (tmp_path / "elsewhere").mkdir()
    write_run(tmp_path / "elsewhere" / "a", 0.1)
    with pytest.raises(UserError, match="two of the runs have one folder name"):
        correlate([runs[0], tmp_path / "elsewhere" / "a"], [], {})
    known = json.loads((runs[1] / store.EVALUATION).read_text())
    known["cells"][0]["seed"] = 9
    (runs[1] / store.EVALUATION).write_text(json.dumps(known))
    with pytest.raises(UserError, match="evaluated on another grid"):
        correlate(runs, [], {})
