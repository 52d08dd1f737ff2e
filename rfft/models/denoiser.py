"""U-Net, with or without ControlNet, as the one function that the maths calls."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rfft.models.parameterization import from_epsilon, from_v
from rfft.types import Conditioning, Denoised, NoiseLevel


class UNetDenoiser(nn.Module):
    """U-Net + ControlNet: x [B,4,h,w] at a noise level -> x0_hat and eps_hat, in x's precision."""

    def __init__(self, unet: Any, controlnet: Any, prediction_type: str) -> None:
        """Take diffusers' UNet2DConditionModel, ControlNetModel or None, and what the U-Net predicts.

        `prediction_type`: epsilon or v_prediction, as diffusers' schedulers call it.
        """
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.to_pair = {"epsilon": from_epsilon, "v_prediction": from_v}[prediction_type]

    def forward(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        kwargs = {"encoder_hidden_states": cond.hidden, "added_cond_kwargs": cond.added or None}
        residuals = {}
        if self.controlnet is not None:
            down, mid = self.controlnet(x, level.t, controlnet_cond=edges, return_dict=False, **kwargs)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        predicted: Tensor = self.unet(x, level.t, return_dict=False, **kwargs, **residuals)[0]
        # Autocast and half-precision weights end here: the pair is in x's own precision.
        return self.to_pair(x, predicted.to(x.dtype), level.a, level.s)
