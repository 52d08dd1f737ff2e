"""How a config says that the objective is used: which steps are trained, beta, whether rewards fit it."""

from __future__ import annotations

from rfft.config.schema import Config
from rfft.errors import require
from rfft.objectives import WITHOUT_GRADIENT
from rfft.objectives.base import Objective
from rfft.objectives.draw import TrainedSteps
from rfft.objectives.dual import DualBeta
from rfft.rewards.weighted import WeightedRewards, is_differentiable


def trained_steps(config: Config, strata: int) -> TrainedSteps:
    """Return the draw of the trained steps, `strata` of them in an optimizer step."""
    rollout = config.rollout
    pool = rollout.steps, rollout.last, rollout.grad_steps
    return TrainedSteps(config.run.seed, *pool, strata, rollout.draw, rollout.bias)


def dual_beta(config: Config) -> DualBeta | None:
    """Return what holds the regularizer at its drift, where objective.beta=auto."""
    settings = config.objective
    if settings.beta != "auto":
        return None
    return DualBeta(settings.drift, settings.beta_start, settings.beta_rate)


def check_gradient(config: Config, objective: Objective, reward: WeightedRewards) -> None:
    """Raise UserError if the objective needs a gradient that a reward has not got."""
    given = zip(config.reward.terms, reward.terms, strict=True)
    missing = [term.use for term, (_, _, made) in given if not is_differentiable(made)]
    require(
        not missing or not getattr(objective, "needs_gradient", True),
        f"reward.terms: {', '.join(missing)} has no gradient, which objective.use={config.objective.use} "
        f"needs: set objective.use to {', '.join(WITHOUT_GRADIENT)}, which do without",
    )
