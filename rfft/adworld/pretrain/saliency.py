"""rf-tiny's saliency network."""

from pathlib import Path

from rfft.adworld.pretrain import maps
from rfft.adworld.pretrain.maps import STEPS


def train(out: Path, state: Path, steps: int = STEPS) -> None:
    maps.train("saliency", out, state, steps)
