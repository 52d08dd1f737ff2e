"""The model while it trains, on other products: which checkpoint is the best, and whether something fell.

What chooses a checkpoint must not be what the run is reported on, so this grid shares no product with that of
the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rfft import build
from rfft.config.schema import Config
from rfft.data.overlap import shared_products
from rfft.errors import UserError
from rfft.evaluation.evaluator import Evaluation, Evaluator
from rfft.evaluation.grid import describe_grid
from rfft.evaluation.guardrails import guardrails
from rfft.evaluation.store import State, read_json, values, write_json
from rfft.models.bundle import Bundle
from rfft.utils.log import warn

VALIDATION = "validation.json"
CHOOSES = "available_rate_rfnet"  # never the judge's


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
        if test.networks.rfnet is None:
            warn("without RFNet no checkpoint is the best one: evaluate.every is for guardrails alone")

    def base(self, run: Path) -> State | None:
        """Return the base model's facts and metrics, if they have been recorded.

        A UserError says so where they are of another grid, on which a best checkpoint may have been chosen.
        """
        known = read_json(run / VALIDATION)
        if known and known["cells"] != self.grid["cells"]:
            raise UserError(
                f"{run} was validated on other products, prompts or seeds: bring its evaluate.validation "
                "back, or choose another run.name"
            )
        return known.get("base")

    def record_base(self, run: Path, evaluation: Evaluation) -> None:
        """Write validation.json: the grid, and the base model's facts and metrics on it."""
        base = evaluation.facts | {"metrics": evaluation.metrics}
        write_json(run / VALIDATION, self.grid | {"base": base})

    def warnings(self, run: Path, metrics: Mapping[str, float]) -> list[str]:
        """Return what has fallen below a guardrail of the base model's metrics on this grid."""
        base = self.base(run)
        return guardrails({} if base is None else values(base), metrics, self.settings)
