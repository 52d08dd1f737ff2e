"""What a run says on the terminal before it begins."""

from __future__ import annotations

from rfft import build
from rfft.config.schema import Config
from rfft.data.dataset import Samples
from rfft.data.overlap import describe_samples, overlap_warnings
from rfft.utils.log import messages, warn


def announce_data(config: Config, trained: Samples, evaluated: Samples | None) -> None:
    """Say what is trained on and what is evaluated on (None: nothing), and warn where these do not fit."""
    console, source = messages(), build.trained_products(config)
    console.print(f"training on {describe_samples(trained, source)}", highlight=False, soft_wrap=True)
    if evaluated is None:
        return
    other = build.evaluated_products(config)
    console.print(f"evaluating on {describe_samples(evaluated, other)}", highlight=False, soft_wrap=True)
    for warning in overlap_warnings(source, trained, other, evaluated):
        warn(warning)
