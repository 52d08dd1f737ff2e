"""Cut a product out of a plain photo: from a saliency map to alpha at the photo's own resolution.

Shapes: H W the photo's pixels, h w the working size. Photos are uint8 [H,W,3] RGB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.data.cutout import Box, Pixels, bounds

Map: TypeAlias = NDArray[np.float32]
Saliency: TypeAlias = Callable[[Tensor], Tensor]  # [1,3,h,w] in [0,1] -> [1,1,h,w] in [0,1]

WORKING_SIDE = 640  # of the longer side; the networks see no more anyway
MARGIN = 0.2  # around what was found in the whole photo, as a share of its longer side
RADIUS, EPSILON = 4, 1e-4  # of the guided filter, in working pixels and squared intensity
LEAST_SHARE = 0.002  # of the photo that a product covers


@dataclass(frozen=True)
class Edge:
    """Alpha rises from 0 to 1 while the saliency passes `threshold`, over a range of `softness`."""

    threshold: float = 0.5
    softness: float = 0.25  # 0: a hard edge


def cut_out(photo: Pixels, saliency: Saliency, edge: Edge) -> Pixels:
    """Return the photo as RGBA [H,W,4]; all of it is transparent if no product was found.

    The network sees the whole photo, then what was found there, larger. A guided filter makes the second map
    follow the photo's own edges.
    """
    height, width = photo.shape[:2]
    cutout = np.zeros((height, width, 4), np.uint8)
    box = _find(photo, saliency, edge.threshold)
    if box is None:
        return cutout
    left, top, right, bottom = box
    crop = photo[top:bottom, left:right]
    small = _shrink(crop)
    alpha = _guide(_saliency_map(small, saliency), small, crop)
    if edge.softness > 0:
        alpha = (alpha - edge.threshold) / edge.softness + 0.5
    else:
        alpha = (alpha > edge.threshold).astype(np.float32)
    window = cutout[top:bottom, left:right]
    window[..., 3] = np.rint(alpha.clip(0, 1) * 255)
    window[..., :3] = np.where(window[..., 3:] > 0, crop, 0)  # nothing of the background is handed on
    if (cutout[..., 3] > 127).mean() < LEAST_SHARE:
        cutout[:] = 0
    return cutout


def _find(photo: Pixels, saliency: Saliency, threshold: float) -> Box | None:
    """Return the box of the photo that holds the product, with a margin; None if nothing is salient."""
    small = _shrink(photo)
    salient = _saliency_map(small, saliency) > threshold
    if not salient.any():
        return None
    height, width = photo.shape[:2]
    scale = height / small.shape[0]
    left, top, right, bottom = (round(side * scale) for side in bounds(salient))
    margin = round(MARGIN * max(right - left, bottom - top))
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(width, right + margin),
        min(height, bottom + margin),
    )


def _saliency_map(picture: Pixels, saliency: Saliency) -> Map:
    """Return the network's map [h,w] of a picture [h,w,3]."""
    image = torch.tensor(picture).permute(2, 0, 1)[None].float().div(255)
    with torch.no_grad():
        return saliency(image)[0, 0].float().cpu().numpy()


def _shrink(picture: Pixels) -> Pixels:
    """Return the picture with WORKING_SIDE pixels on its longer side at most."""
    height, width = picture.shape[:2]
    scale = WORKING_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _guide(rough: Map, small: Pixels, crop: Pixels) -> Map:
    """Enlarge a map [h,w] to [H,W] by the fast guided filter with a colour guide (arXiv 1505.00996).

    In each window the map is a linear function of the colours of `small` [h,w,3]; that function, enlarged, is
    then taken of the colours of `crop` [H,W,3].
    """
    guide = small.astype(np.float32) / np.float32(255)
    mean, mean_map = _blur(guide), _blur(rough)
    products = (guide[..., :, None] * guide[..., None, :]).reshape(*guide.shape[:2], 9)
    variance = _blur(products).reshape(*guide.shape[:2], 3, 3) - mean[..., :, None] * mean[..., None, :]
    covariance = _blur(guide * rough[..., None]) - mean * mean_map[..., None]
    regularised = variance + EPSILON * np.eye(3, dtype=np.float32)
    slope = np.linalg.solve(regularised, covariance[..., None])[..., 0]
    offset = mean_map - (slope * mean).sum(axis=-1)
    height, width = crop.shape[:2]
    result = cv2.resize(_blur(offset), (width, height))
    for channel in range(3):  # one by one: a photo of 50 million pixels is large in floats
        result += cv2.resize(_blur(slope[..., channel]), (width, height)) * (
            crop[..., channel] / np.float32(255)
        )
    return np.asarray(result, np.float32)


def _blur(values: Map) -> Map:
    """Return the mean over a square window, channel by channel."""
    side = 2 * RADIUS + 1
    return np.asarray(cv2.blur(np.ascontiguousarray(values), (side, side)), np.float32)
