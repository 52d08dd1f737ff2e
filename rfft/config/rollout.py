"""Settings of the sampler, and how any setting is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def setting(default: Any, **limits: Any) -> Any:
    """Return a field with a default and limits: above (exclusive), least, most; nested: lists in a list."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=limits)
    return field(default=default, metadata=limits)


@dataclass
class RolloutConfig:
    steps: int = setting(40, least=1)  # S, DDIM steps
    last: int = setting(10, least=1)  # the trained step is drawn among the last ones
    grad_steps: int = setting(1, least=1)  # trained steps per rollout
    # even: at equal distances from a random first one; random: each by itself, the i-th of the last ones
    # with a weight of i ** bias; last: the last grad_steps of all.
    draw: Literal["even", "random", "last"] = "even"
    bias: float = setting(0.0, least=-10, most=10)
    # Micro-batches of an optimizer step that share a draw of the trained steps; null: as many as there are
    # processes, so that none waits for another. To repeat a run of N processes on fewer, set N.
    shared_draw: int | None = setting(None, least=1)
    # Of painting: samples, evaluation and `rfft generate`; and of the training rollout, unless
    # objective.guidance_scale says otherwise.
    guidance_scale: float = setting(7.5, least=1)
    # Of the training rollout's forwards without gradient. autocast: the trained networks themselves, under
    # trainer.mixed_precision. bf16, fp16: a copy of them, kept in that precision with the adapters merged:
    # several times faster, for its memory (docs/performance.md).
    precision: Literal["autocast", "bf16", "fp16"] = "autocast"
    # Is that copy compiled? auto: where the run is long enough to earn the time that it takes.
    compile: Literal["auto", "always", "never"] = "auto"
    # Of so many steps in a row that copy computes the first wholly; the others reuse what its deep blocks
    # said (DeepCache, arXiv 2312.00858; U-Nets only). 1: all wholly, which alone is exact.
    cache: int = setting(1, least=1)
