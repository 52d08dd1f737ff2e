"""rf-tiny's saliency network."""

from rfft.training.pretrain import maps
from rfft.training.pretrain.fit import Run
from rfft.training.pretrain.maps import STEPS

__all__ = ["STEPS", "train"]


def train(run: Run) -> None:
    maps.train("saliency", run)
