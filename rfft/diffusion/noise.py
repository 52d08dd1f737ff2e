"""More noise for a sample than the x_T it begins with. Shapes: B batch, C channels, h w latent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def more_noise(noise: Tensor, number: int) -> Tensor:
    """Return standard normal noise [B,C,h,w] that depends on each sample's own x_T and on `number` alone.

    x_T is drawn by the sample's place in the order of all samples, and seeds what else is drawn for it: so
    neither batch, processes nor a resume change anything, and no generator's state is to be kept.
    """
    seeds = noise.detach().float().flatten(1)[:, :4].contiguous().cpu().numpy().view(np.uint32)
    rows = [
        np.random.default_rng([number, *seed.tolist()]).standard_normal(noise.shape[1:], dtype=np.float32)
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(rows)).to(noise)
