"""Frozen weights kept in half precision and used in full: each layer casts its own as it is called.

Published weights are half precision's anyway, so nothing is lost; what half precision would lose is in the
activations, and L_CC, a small difference of large ones, suffers from it (docs/objectives.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class _Linear(torch.autograd.Function):
    """x W^T + b; what waits for the backward pass is W as it is kept, not its copy in x's precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return grads[0] @ weight.to(grads[0].dtype), None, None


class _Conv2d(torch.autograd.Function):
    """The same for a convolution; `options`: stride, padding, dilation, groups."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.options = x.shape, options
        return F.conv2d(x, weight.to(x.dtype), bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        full = weight.to(grads[0].dtype)
        return conv2d_input(ctx.shape, full, grads[0], *ctx.options), None, None, None


class HalfLinear(nn.Linear):
    """A frozen linear layer with its weight in half precision; under autocast it is a plain one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return _Linear.apply(x, self.weight, self.bias)


class HalfConv2d(nn.Conv2d):
    """The same for a convolution that pads with zeros."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        options = self.stride, self.padding, self.dilation, self.groups
        return _Conv2d.apply(x, self.weight, self.bias, options)


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: HalfLinear, nn.Conv2d: HalfConv2d}


def use_in_full(network: nn.Module) -> None:
    """Have a network in half precision compute in that of its input.

    Weights of linear layers and convolutions, nearly all there are, stay as they are; the rest becomes fp32.
    """
    for layer in network.modules():
        kept = KINDS.get(type(layer))
        if kept is not None and getattr(layer, "padding_mode", "zeros") == "zeros":
            layer.__class__ = kept
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_floating_point() or (kept and name == "weight"):
                    continue
                tensor.data = tensor.data.float()
