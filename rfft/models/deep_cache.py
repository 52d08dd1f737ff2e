"""Forwards of a U-Net that reuse what its deep blocks said a step ago (DeepCache, arXiv 2312.00858).

Neighbouring steps differ least in the deep features: such a forward computes the first block down and the
last one up alone. ControlNet is not called: what it adds to these is that of the last whole forward too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rfft.models.denoiser import UNetDenoiser
from rfft.types import Conditioning, Denoised, NoiseLevel


class DeepCache:
    """A UNetDenoiser's shallow forward, after a whole one of the same batch."""

    def __init__(self, denoiser: UNetDenoiser) -> None:
        """Watch the denoiser's whole forwards."""
        self.denoiser, self.unet = denoiser, denoiser.unet
        self.last = self.unet.up_blocks[-1]
        self.skips = len(self.last.resnets)  # what the last block up takes from the first one down
        self.deep: Tensor | None = None  # what enters the last block up
        self.residuals: tuple[Tensor, ...] = ()
        self.unet.register_forward_pre_hook(self._keep_residuals, with_kwargs=True)
        self.last.register_forward_pre_hook(self._keep_deep, with_kwargs=True)

    def shallow(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        """Return what the denoiser would make of x, were the deep features still the same."""
        predicted = self._predict(x, level.t, cond).to(x.dtype)
        return self.denoiser.to_pair(x, predicted, level.a, level.s)

    def _predict(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        unet, half = self.unet, self.unet.dtype
        x, text = x.to(half), cond.hidden.to(half)
        added = {name: value.to(half) for name, value in cond.added.items()} or None
        emb = unet.time_embedding(unet.get_time_embed(sample=x, timestep=t))
        more = unet.get_aug_embed(emb=emb, encoder_hidden_states=text, added_cond_kwargs=added)
        emb = emb if more is None else emb + more
        text = unet.process_encoder_hidden_states(text, added)

        first = unet.conv_in(x)
        _, states = unet.down_blocks[0](hidden_states=first, temb=emb, **_text(unet.down_blocks[0], text))
        own = (first, *states)[: self.skips]
        skips = tuple(map(torch.add, own, self.residuals)) if self.residuals else own
        y = self.last(
            hidden_states=self.deep, temb=emb, res_hidden_states_tuple=skips, **_text(self.last, text)
        )
        predicted: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(y)))
        return predicted

    def _keep_residuals(self, unet: nn.Module, args: Any, kwargs: Any) -> None:
        self.residuals = tuple(kwargs.get("down_block_additional_residuals", ())[: self.skips])

    def _keep_deep(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        self.deep = kwargs["hidden_states"]


def _text(block: Any, text: Tensor) -> dict[str, Tensor]:
    """Return the text for a block that attends to it."""
    return {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
