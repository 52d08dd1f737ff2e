"""Reading the configs of `rfft preference train` and `rfft aesthetic train`, and what cannot work in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rfft.config.load import find_config, load_as
from rfft.errors import require
from rfft.feedback.votes import DEFECTS
from rfft.preference.schema import AestheticTrainingConfig, OpinionConfig, PreferenceTrainingConfig
from rfft.rewards.encoders import EMBEDDED

Kind = TypeVar("Kind", bound=OpinionConfig)
KINDS = {PreferenceTrainingConfig: "preference", AestheticTrainingConfig: "aesthetic"}


def load_config(kind: type[Kind], path: str | Path, overrides: Sequence[str] = ()) -> Kind:
    """Read, complete and check a config of this kind: a YAML file, or a shipped one by its name."""
    return load_as(kind, check_config, find_config(path, KINDS[kind]), overrides)


def check_config(config: OpinionConfig) -> None:
    """Combinations that cannot work; each error names the fix."""
    network = config.network
    require(
        config.data.train,
        "data.train is empty: name votes with --data, feedback.db or a file that `rfft review export` wrote",
    )
    require(
        network.encoder != EMBEDDED or network.width % network.heads == 0,
        f"network.width={network.width} is no multiple of network.heads={network.heads}",
    )
    if isinstance(config, PreferenceTrainingConfig):
        dimensions = config.preference.dimensions
        require(dimensions, "preference.dimensions is empty: write preference.dimensions={overall: overall}")
        require(
            all(isinstance(words, str) and words.strip() for words in dimensions.values()),
            f"preference.dimensions={dimensions}: give each name words, as in {{quality: sharp clean}}",
        )
        require(
            network.encoder == EMBEDDED or network.train == "all" or len(dimensions) > 1,
            "network.train=heads leaves nothing of CLIP to train for one dimension: set network.train=all",
        )
    if isinstance(config, AestheticTrainingConfig):
        unknown = sorted(set(config.aesthetic.defects) - set(DEFECTS))
        require(
            not unknown, f"aesthetic.defects names {', '.join(unknown)}: choose from {', '.join(DEFECTS)}"
        )
