"""rf-tiny's depth network."""

from rfft.adworld.pretrain import maps
from rfft.adworld.pretrain.fit import Run
from rfft.adworld.pretrain.maps import STEPS

__all__ = ["STEPS", "train"]


def train(run: Run) -> None:
    maps.train("depth", run)
