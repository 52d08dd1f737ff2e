"""Monocular depth by transformers' DPT (arXiv 2103.13413) and Depth Anything (arXiv 2401.10891) classes.

B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForDepthEstimation
from transformers.image_processing_base import ImageProcessingMixin

from rfft.errors import UserError
from rfft.models.layers import resize, standardize
from rfft.models.pretrained import why

MODEL_TYPES = ("dpt", "depth_anything")
UNUSED = "neck.fusion_stage.layers.0.residual_layer1."  # no forward needs it, so published weights lack it


class DepthEstimator(nn.Module):
    """Makes depth [B,1,H,W] of images [B,3,H,W] in [0,1], stretched to [0,1] in each picture, 1 nearest.

    Differentiable with respect to the image. A picture that is not square is squeezed to the network's size.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        metric: bool,
    ) -> None:
        """Wrap a model for pictures of `size`, height and width; a `metric` one gives metres, not 1/m."""
        super().__init__()
        self.model, self.size, self.mean, self.std, self.metric = model, size, mean, std, metric

    def forward(self, image: Tensor) -> Tensor:
        dtype = next(self.model.parameters()).dtype
        pixels = standardize(resize(image, self.size), self.mean, self.std).to(dtype)
        depth = self.model(pixel_values=pixels).predicted_depth[:, None].float()
        near = stretch(1 / depth.clamp(min=1e-3) if self.metric else depth)
        return resize(near, (image.shape[-2], image.shape[-1]))


def stretch(depth: Tensor) -> Tensor:
    """Stretch depth [B,1,H,W] to the whole of [0,1] in each picture; a flat one becomes 0."""
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    return (depth - low) / (high - low).clamp(min=1e-6)


def load_depth_estimator(source: str) -> DepthEstimator:
    """Load a depth model with its preprocessor_config.json from a folder or hub id, in float32 and eval mode.

    Raises UserError if it does not load, or is of another kind.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in MODEL_TYPES:
            types = ", ".join(MODEL_TYPES)
            raise UserError(f"depth network {source}: {config.model_type} is none of {types}")
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
        model, report = AutoModelForDepthEstimation.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"depth network {source}: neither a folder nor a hub id that loads ({why(error)})"
        ) from error
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED)):
        raise UserError(f"depth network {source}: {len(missing)} weights are missing, first {missing[0]}")
    metric = getattr(config, "depth_estimation_type", "relative") == "metric"
    try:
        return DepthEstimator(model.eval(), _size(processor), *_statistics(processor), metric)
    except (KeyError, TypeError) as error:
        raise UserError(f"depth network {source}: its preprocessor_config.json lacks {error}") from error


def _size(processor: dict[str, Any]) -> tuple[int, int]:
    """Return height and width, given as such or as one number as in the first releases."""
    size = processor["size"]
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])


def _statistics(processor: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    return processor["image_mean"], processor["image_std"]
