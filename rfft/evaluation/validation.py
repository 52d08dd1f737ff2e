"""The model while it trains, on other products: which checkpoint is the best, and whether something fell.

What chooses a checkpoint must not be what the run is reported on, so this grid shares no product with that of
the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from rfft import build
from rfft.config.schema import Config
from rfft.data.overlap import shared_products
from rfft.errors import UserError
from rfft.evaluation.evaluator import Evaluation, Evaluator
from rfft.evaluation.grid import describe_grid
from rfft.evaluation.guard import guard, preference
from rfft.evaluation.store import State, read_json, values, write_json
from rfft.evaluation.summary import as_json
from rfft.models.bundle import Bundle
from rfft.utils.log import warn

VALIDATION = "validation.json"


def validation_config(config: Config) -> Config:
    """Return the config with the validation grid in place of evaluate's, and one attempt at each picture."""
    evaluate, grid, data = config.evaluate, config.evaluate.validation, config.data
    derived = grid.products is None
    changed = replace(
        evaluate,
        products=build.validated_products(config),
        prompts=grid.prompts or (data.prompts if derived else None),
        options=data.options if derived else evaluate.options,
        count=grid.count,
        prompts_per_product=grid.prompts_per_product,
        seeds=grid.seeds,
        max_attempts=1,
        reference=evaluate.reference and "auto",  # nothing of what is reported on
        fid="none",
    )
    return replace(config, evaluate=changed)


class Validation:
    """The validation grid of a run."""

    def __init__(self, config: Config, bundle: Bundle, test: Evaluator) -> None:
        """test: the evaluator of the run's report, whose networks are used here too."""
        self.settings = config.evaluate
        self.evaluator = Evaluator(validation_config(config), bundle, test.networks.rfnet, test.networks)
        self.grid = describe_grid(self.evaluator)
        if shared := shared_products(test.data, self.evaluator.data):
            warn(
                f"{shared} of the products of evaluate.validation.products are among those of "
                "evaluate.products: the best checkpoint is chosen on what is reported; set data.holdout=0.2, "
                "or name other products"
            )
        if test.networks.rfnet is None and test.networks.monitor is None:
            warn("without RFNet no checkpoint is the best one: evaluate.every is for guardrails alone")

    def base(self, run: Path) -> State | None:
        """Return the base model's facts and metrics, if they have been recorded.

        A UserError says so where they are of another grid, on which a best checkpoint may have been chosen,
        or where another network has chosen it.
        """
        known = read_json(run / VALIDATION)
        if known and known["cells"] != self.grid["cells"]:
            raise UserError(
                f"{run} was validated on other products, prompts or seeds: bring its evaluate.validation "
                "back, or choose another run.name"
            )
        before, now = known.get("grid", {}).get("evaluate.monitor"), self.settings.monitor
        if known and before != now:
            raise UserError(
                f"{run} was validated with evaluate.monitor={before or 'null'}, not {now or 'null'}: bring "
                "that back, or choose another run.name"
            )
        return known.get("base")

    def record_base(self, run: Path, evaluation: Evaluation) -> None:
        """Write validation.json: the grid, the base model's facts and metrics on it, and its scores."""
        base = evaluation.facts | {"metrics": evaluation.metrics}
        scores = {name: found.tolist() for name, found in evaluation.scores.items()}
        write_json(run / VALIDATION, self.grid | {"base": base, "scores": scores})

    def metrics(self, run: Path, evaluation: Evaluation) -> dict[str, dict[str, float]]:
        """Return a checkpoint's metrics, with what they say beside the base model's pictures."""
        known = read_json(run / VALIDATION).get("scores", {})
        base = {name: torch.tensor(rows, dtype=torch.float) for name, rows in known.items()}
        monitored = self.settings.monitor is not None
        preferred = {} if monitored else preference(evaluation.scores, base, self.evaluator.products)
        return evaluation.metrics | as_json(preferred)

    def verdict(self, run: Path, metrics: Mapping[str, float]) -> tuple[list[str], float | None]:
        """Return what is wrong with a checkpoint of these metrics, and what it is ranked by; see guard()."""
        base = self.base(run)
        return guard({} if base is None else values(base), metrics, self.settings)
