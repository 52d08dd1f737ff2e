"""Frozen weights kept in int8 and used in the precision of what comes in: half of half precision's memory.

The rounding is that of torchao's Int8WeightOnlyConfig: each row of a linear layer's weight has a scale of its
own. These are plain tensors here, which processes, copies and exports treat like any others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rfft.models.half import HalfLinear

STEPS = 127.5  # of int8, on either side of zero


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight [out,in] as int8, and each row's scale [out,1] in float32: weight ~ int8 * scale."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-5) / STEPS
    return (weight / scale).round().clamp(-128, 127).to(torch.int8), scale


class _Linear(torch.autograd.Function):
    """x W^T + b; what waits for the backward pass is W in int8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Int8Linear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.dense(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] @ ctx.layer.dense(grads[0].dtype), None


class Int8Linear(nn.Module):
    """A frozen linear layer that keeps its weight in int8."""

    def __init__(self, layer: nn.Linear) -> None:
        """Take over a layer's weight, rounded, and its bias."""
        super().__init__()
        values, scale = rounded(layer.weight)
        self.rounded = nn.Parameter(values, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight [out,in] that the layer computes with."""
        return (self.rounded * self.scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        out: Tensor = _Linear.apply(x, self)
        return out


def quantize(network: nn.Module, blocks: Sequence[str], spared: Sequence[str]) -> None:
    """Round the frozen linear layers in a network's blocks, nearly all of its weights, to int8.

    blocks: class names; spared: endings of the names of layers that are left alone, as those with an adapter.
    """
    named = dict(network.named_modules())
    inside = tuple(f"{name}." for name, module in named.items() if type(module).__name__ in blocks)
    adapted = tuple(f"{name}." for name, module in named.items() if isinstance(module, LoraLayer))
    endings = tuple(f".{ending}" for ending in spared)
    for name, layer in named.items():
        kept = not name.startswith(inside) or name.startswith(adapted) or f".{name}".endswith(endings)
        if type(layer) in (nn.Linear, HalfLinear) and not kept and not layer.weight.requires_grad:
            parent, _, child = name.rpartition(".")
            setattr(named[parent], child, Int8Linear(layer))


def dense_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's state_dict() with the weights of its int8 layers as they are computed with."""
    state = network.state_dict()
    for name, layer in network.named_modules():
        if isinstance(layer, Int8Linear):
            del state[f"{name}.rounded"], state[f"{name}.scale"]
            state[f"{name}.weight"] = layer.dense(torch.float32)
    return state
