"""U-Net + ControlNet as the one function that the maths calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from rfft.types import Conditioning


class Denoiser(nn.Module):
    """U-Net + ControlNet as one function: noise [B,4,h,w] predicted in x at timestep t."""

    alpha_bar: Tensor

    def __init__(self, unet: Any, controlnet: Any, scheduler: Any) -> None:
        """diffusers' UNet2DConditionModel, ControlNetModel and a scheduler of the same noise."""
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.v_prediction = scheduler.config["prediction_type"] == "v_prediction"
        self.register_buffer("alpha_bar", scheduler.alphas_cumprod.clone(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, edges: Tensor) -> Tensor:
        kwargs = {"encoder_hidden_states": cond.hidden, "added_cond_kwargs": cond.added or None}
        down, mid = self.controlnet(x, t, controlnet_cond=edges, return_dict=False, **kwargs)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        out: Tensor = self.unet(x, t, return_dict=False, **kwargs, **residuals)[0]
        if not self.v_prediction:
            return out
        ab = self.alpha_bar.take(t).to(x.dtype)  # [t] would look at its value, which a count of costs has not
        return ab.sqrt() * out.to(x.dtype) + (1 - ab).sqrt() * x

    @contextmanager
    def encoder_once(self) -> Iterator[None]:
        """Within it, all calls have the same x, t and prompt: a frozen U-Net's down and mid blocks run once.

        The ControlNet's residuals come in behind those blocks, so whatever it is, they give the same.
        """
        blocks = [*self.unet.down_blocks, self.unet.mid_block]
        frozen = not any(p.requires_grad for p in self.unet.parameters())
        try:
            for block in blocks if frozen else ():
                block.forward = _first_result(block.forward)
            yield
        finally:
            for block in blocks if frozen else ():
                del block.forward  # the class's own shows again


def _first_result(forward: Callable[..., Any]) -> Callable[..., Any]:
    results: list[Any] = []

    def once(*args: Any, **kwargs: Any) -> Any:
        if not results:
            results.append(forward(*args, **kwargs))
        return results[0]

    return once
