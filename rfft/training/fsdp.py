"""FSDP2: weights too are split over the processes, and put together unit by unit as a forward needs them.

U-Net and ControlNet are split, the ControlNet's frozen copy too; autoencoder, text encoder, rewards are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_

from rfft.errors import require
from rfft.models.int8 import Int8Linear
from rfft.training.distributed import MOMENTS, Engine
from rfft.types import Conditioning, Denoised, NoiseLevel


class Fsdp(Engine):
    """Weights, gradients and optimizer state are split; gradients are reduced in every backward pass.

    Kept whole until the last one they would take the memory that was to be saved.
    """

    def __init__(
        self,
        accelerator: Any,
        modules: Sequence[nn.Module],
        unit_names: Sequence[str],
        optimizer: torch.optim.AdamW,
    ) -> None:
        """Split the denoiser, the first of `modules`, and any others, at the blocks of these class names.

        Weights must be the same in all processes. Accelerate is not asked to prepare anything.
        """
        module = modules[0]
        quantized = any(isinstance(layer, Int8Linear) for layer in module.modules())
        require(
            not quantized, "model.quantize is not for FSDP2: set it to none, or take launch/multi_gpu.yaml"
        )
        self.accelerator, self.optimizer, self.module = accelerator, optimizer, module
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        parts = [*module.children(), *modules[1:]]
        self.units = [unit for part in parts for unit in _split_module(part, unit_names, mesh)]
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.buffers = list(module.buffers())
        (group,) = optimizer.param_groups
        group["params"] = self.parameters  # in the places of the whole ones
        self.denoiser = self._denoise
        self.gathered: dict[int, Any] = {}
        self.left = 0

    def _denoise(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        # Autocast would keep whole weights in half precision; those from a forward without gradient would be
        # used with gradient, too, and end it there (torch 2.13 knows better for weights that are not split).
        kind = x.device.type
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            denoised: Denoised = self.module(x, level, cond, edges)
        return denoised

    def _before_forward(self) -> None:
        pass

    def clip(self, max_norm: float) -> Tensor:
        norm = clip_grad_norm_(self.parameters, max_norm)
        return _whole(norm)

    @contextmanager
    def whole(self) -> Iterator[None]:
        try:
            for unit in self.units:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()
            yield
        finally:
            for unit in self.units:
                unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()

    def gather(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in weights.items():
            whole = _whole(tensor)
            if self.accelerator.is_main_process:
                found[name] = whole.cpu()
        return found

    def split(self, weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: _split(tensor, like[name]) for name, tensor in weights.items()}

    def collect(self) -> None:
        states = self.optimizer.state_dict()["state"]
        self.gathered = {i: self.gather(state) for i, state in states.items()}

    def state_dict(self) -> dict[str, Any]:
        return {**self.optimizer.state_dict(), "state": self.gathered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = {}
        for i, values in state["state"].items():
            parts = {name: _split(values[name], self.parameters[i]) for name in MOMENTS}
            own[i] = {**values, **parts}
        self.optimizer.load_state_dict({**state, "state": own})


def _split_module(root: nn.Module, unit_names: Sequence[str], mesh: DeviceMesh) -> list[FSDPModule]:
    """Split a module at the blocks of these class names; returns them, and last the one that holds the
    rest.
    """
    inner = [module for module in root.modules() if type(module).__name__ in unit_names]
    units = [fully_shard(module, mesh=mesh) for module in (*inner, root)]
    units[-1].set_reshard_after_forward(True, recurse=False)  # torch would keep this one whole
    return units


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _split(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that all processes have, as `like` is split."""
    if not isinstance(like, DTensor):
        return tensor
    whole = tensor.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
