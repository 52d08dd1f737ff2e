"""The denoiser of rollouts: a copy in half precision with the adapters merged, compiled where that pays.

Autocast casts every frozen weight in every forward; here that happens once. The networks that are trained,
and their reference, are never touched.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models import upsampling
from diffusers.utils import is_torch_version
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from rfft.errors import require
from rfft.models.deep_cache import DeepCache
from rfft.models.denoiser import UNetDenoiser
from rfft.models.lora import LoraLayer, merged_weight
from rfft.types import Conditioning, Denoised, NoiseLevel

KINDS_OF_BLOCKS = 256  # that may be compiled: of each shape of weights one; torch's own limit is 8
COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # torch's variable for the folder of what it has compiled


class FastCopy:
    """A types.Denoise without gradient, which follows the trained network.

    fast = FastCopy(denoiser, torch.bfloat16)
    fast.begin()  # a rollout: take over the trained weights as they are now
    fast(x, level, cond, edges)
    """

    def __init__(self, trained: nn.Module, dtype: torch.dtype, cache: int = 1) -> None:
        """Copy a denoiser whose networks are its children.

        cache: of so many calls in a row, the first alone is computed wholly (U-Nets; a UserError for others).
        Raises UserError where its weights are split over processes.
        """
        split = any(isinstance(parameter, DTensor) for parameter in trained.parameters())
        require(not split, "rollout.precision: no process has all weights under FSDP2: set it to autocast")
        self.trained, self.dtype = trained, dtype
        self.denoiser: Any = _without_adapters(copy.deepcopy(trained))
        self.denoiser.requires_grad_(False).to(dtype)
        self.denoiser.to(memory_format=torch.channels_last)
        for network in self.denoiser.children():
            network.register_forward_pre_hook(self._cast, with_kwargs=True)
        self.moving = _moving(trained, self.denoiser)
        _share(trained, self.denoiser)
        self.cache = cache
        is_unet = isinstance(self.denoiser, UNetDenoiser)
        require(cache == 1 or is_unet, "rollout.cache reuses what U-Nets say: set it to 1 here")
        if cache > 1:
            self.deep = DeepCache(self.denoiser)
        self.calls = 0

    def compile(self, blocks: Sequence[str]) -> None:
        """Have U-Nets and their ControlNets compiled as a whole, other networks block by block, when called.

        blocks: class names of those. A transformer's are all alike; of a U-Net, much of the time is between
        them (docs/performance.md). A cached U-Net is taken apart, so its blocks are compiled, too.
        """
        parts = list(self.denoiser.children())
        if self.cache > 1 or not isinstance(self.denoiser, UNetDenoiser):
            parts = [block for block in self.denoiser.modules() if type(block).__name__ in blocks]
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS_OF_BLOCKS)
        # It looks a version up where torch cannot follow, which would break the graph in two.
        upsampling.is_torch_version = torch.compiler.assume_constant_result(is_torch_version)
        for part in parts:
            part.compile(fullgraph=True, dynamic=False)

    @torch.no_grad()
    def begin(self) -> None:
        """Begin a rollout: merge the adapters as they are now, and forget what was said before."""
        self.calls = 0
        for source, target in self.moving:
            target.copy_(merged_weight(source) if isinstance(source, LoraLayer) else source)

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        """Return the pair in x's precision, whatever autocast says."""
        whole = self.calls % self.cache == 0
        self.calls += 1
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            call = self.denoiser if whole else self.deep.shallow
            denoised: Denoised = call(x, level, cond, edges)
        return denoised

    def _cast(self, network: nn.Module, args: Any, kwargs: Any) -> Any:
        """Cast what a network is given; single values, timesteps above all, keep their precision."""

        def cast(value: Any) -> Any:
            is_feature = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
            return value.to(self.dtype) if is_feature else value

        return tree_map(cast, args), tree_map(cast, kwargs)


def can_compile(device: torch.device) -> bool:
    """Return whether torch can compile here: on CPUs it needs a C++ compiler, on GPUs Triton."""
    if device.type != "cpu":
        return torch.utils._triton.has_triton()
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def keep_compiled(folder: Path) -> None:
    """Have torch keep what it compiles in a folder, for later runs, unless the environment names another."""
    os.environ.setdefault(COMPILED, str(folder))


def _without_adapters(network: nn.Module) -> Any:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLayer):
                setattr(module, name, child.get_base_layer())
    return network


def _moving(trained: nn.Module, plain: nn.Module) -> list[tuple[Any, Tensor]]:
    """Return what changes while training and where it goes: LoRA layers, and whole trained parameters."""
    found: list[tuple[Any, Tensor]] = []
    adapted = {name: module for name, module in trained.named_modules() if isinstance(module, LoraLayer)}
    for name, layer in adapted.items():
        target: Any = plain.get_submodule(name)
        found.append((layer, target.weight))
    own = dict(plain.named_parameters())
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad and name in own:
            found.append((parameter, own[name]))
    return found


def _share(trained: nn.Module, plain: nn.Module) -> None:
    """Let frozen weights that are the same in both be in memory once."""
    own = dict(plain.named_parameters())
    for name, parameter in trained.named_parameters():
        twin = own.get(name)
        same = twin is not None and twin.dtype == parameter.dtype and twin.stride() == parameter.stride()
        if twin is not None and same and not parameter.requires_grad:
            twin.data = parameter.data
