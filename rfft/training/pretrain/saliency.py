"""rf-tiny's saliency network."""

from rfft.training.pretrain import maps
from rfft.training.pretrain.fit import PretrainRun
from rfft.training.pretrain.maps import STEPS

__all__ = ["STEPS", "train"]


def train(run: PretrainRun) -> None:
    maps.train("saliency", run)
