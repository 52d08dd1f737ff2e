"""The networks that give RFNet its depth and saliency maps.

MapNet, a small U-Net (arXiv 1505.04597), is the embedded one for both; U2-Net and transformers' depth models
are for real pictures. All take images [B,3,H,W] in [0,1], give maps [B,1,H,W] in [0,1] (1 nearest, 1 most
salient) and are differentiable with respect to the image.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.models.hub import is_hub_id
from rfft.models.layers import normalize, vgg_stage
from rfft.models.pretrained import PretrainedModule, find_folder, read_json
from rfft.rewards.depth import DepthEstimator, load_depth_estimator
from rfft.rewards.u2net import U2Net

FORWARD_PIXELS = 2**18  # of all pictures in one forward pass without gradient, at the network's own size


@dataclass
class MapNetConfig:
    # Channels of each level; every level has half the size of the one above.
    widths: list[int] = field(default_factory=lambda: [16, 32, 64, 96, 128])


class MapNet(PretrainedModule):
    """Makes a map [B,1,H,W] in [0,1] of a picture [B,3,H,W] in [0,1]; H and W are at least 2^(levels - 1)."""

    config_class = MapNetConfig

    def __init__(self, config: MapNetConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.down = nn.ModuleList(vgg_stage(a, b) for a, b in pairwise([3, *widths]))
        self.up = nn.ModuleList(vgg_stage(below + skip, skip) for below, skip in pairwise(widths[::-1]))
        self.out = nn.Conv2d(widths[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(image))

    def logits(self, image: Tensor) -> Tensor:
        """Return the map before its sigmoid, [B,1,H,W]."""
        x = normalize(image.to(self.dtype))
        skips: list[Tensor] = []
        for i, stage in enumerate(self.down):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for stage, skip in zip(self.up, skips[-2::-1], strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat([x, skip], dim=1))
        return self.out(x)


def find_depth(name: str) -> str:
    """Return the folder of a depth network; a hub id as it is."""
    return name if is_hub_id(name) else str(find_folder(name))


def load_depth(name: str) -> nn.Module:
    """Load a MapNet (embedded name or folder) or a depth model of transformers (folder or hub id), frozen."""
    source = find_depth(name)
    values = read_json(Path(source)) if Path(source).is_dir() else {"model_type": "on the hub"}
    network = load_depth_estimator(source) if "model_type" in values else MapNet.from_pretrained(source)
    return network.requires_grad_(False)


def load_saliency(name: str) -> nn.Module:
    """Load a U2-Net (u2netp is embedded) or a MapNet, by embedded name, folder or hub id, frozen."""
    folder = find_folder(name)
    architecture = U2Net if read_json(folder).get("architecture") == U2Net.__name__ else MapNet
    return architecture.from_pretrained(folder).requires_grad_(False)


@torch.inference_mode()
def make_maps(network: nn.Module, image: Tensor) -> Tensor:
    """Make the maps [B,1,H,W] of any number of pictures [B,3,H,W], a few at a time."""
    height, width = _working_size(network, image)
    at_once = max(1, FORWARD_PIXELS // (height * width))
    return torch.cat([network(part) for part in image.split(at_once)])


def _working_size(network: nn.Module, image: Tensor) -> tuple[int, int]:
    """Return the height and width to which the network brings a picture."""
    if isinstance(network, DepthEstimator):
        return network.size
    if isinstance(network, U2Net):
        return network.config.image_size, network.config.image_size
    return image.shape[-2], image.shape[-1]
