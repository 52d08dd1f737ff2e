"""Regions of AdWorld's scenes: read off the maps, and their loss."""

import math

import torch
from torch.testing import assert_close

from rfft.adworld.draw import scene
from rfft.training.pretrain.verdicts import find_regions, region_loss


def regions_of(label: str, index: int = 0) -> torch.Tensor:
    drawn = scene(4, index, "train", label)
    saliency = torch.from_numpy(drawn.saliency)[None, None].float() / 255
    product = torch.from_numpy(drawn.product).permute(2, 0, 1)[None].float() / 255
    return find_regions(saliency, product)[0].sum(dim=(1, 2))


def test_regions_are_where_the_fault_is() -> None:
    """A grown part only on a hallucinated product, a prop where one has the wrong size."""
    for i in range(6):
        prop, part, _ = regions_of("size_mismatch", i)
        assert prop > 0 and part == 0
        assert regions_of("shape_hallucination", i)[1] > 3


def test_region_loss_by_hand() -> None:
    """Half of a cell is a region: at a logit of 0 the loss is log 2, wherever the region lies."""
    regions = torch.zeros(1, 3, 4, 4)
    regions[0, 0, :2, :1] = 1
    assert_close(region_loss(torch.zeros(1, 3, 2, 2), regions), torch.tensor(math.log(2)))
    sure = torch.full((1, 3, 2, 2), -20.0)
    sure[0, 0, 0, 0] = 0.0  # the one cell with a half
    assert_close(region_loss(sure, regions), torch.tensor(math.log(2) / 12), rtol=1e-4, atol=1e-6)
