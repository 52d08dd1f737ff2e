"""rf-tiny's depth network."""

from pathlib import Path

from rfft.adworld.pretrain import maps
from rfft.adworld.pretrain.maps import STEPS


def train(out: Path, state: Path, steps: int = STEPS) -> None:
    maps.train("depth", out, state, steps)
