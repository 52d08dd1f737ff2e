"""What calls cost: FLOPs, and the bytes that wait for the backward pass.

It is counted on the CPU, on fake tensors (shapes and types without data) where computing would take longer,
so autocast and the saving kind of attention behave as in a run. FLOPs count a multiply-add as two, as
torch's counter does.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
    shape_wrapper,
)

_ATEN = torch.ops.aten


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(q, k, v))


def _attention_backward(
    grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: object, **__: object
) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


# What torch counts, and the CPU's attention, which it does not know.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_attention),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_attention_backward),
}


class FlopCounter(TorchDispatchMode):
    """A context that counts the FLOPs of what runs in it, as torch's FlopCounterMode does.

    That one also says in which module they happen, which takes as long as all the rest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = operator(*arguments, **(options or {}))
        if flops := _FLOPS.get(operator._overloadpacket):
            self.total += flops(*arguments, **(options or {}), out_val=result)
        return result


@dataclass(frozen=True)
class Cost:
    """What one call takes: FLOPs forward and backward, and the bytes that wait for the backward pass."""

    forward: int
    backward: int
    activations: int

    def __mul__(self, factor: float) -> Cost:
        """Return what `factor` times as many pictures cost."""
        return Cost(*(round(amount * factor) for amount in (self.forward, self.backward, self.activations)))


def fake() -> FakeTensorMode:
    """Return a context in which tensors have shapes and types but no data."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def imagine(modules: Iterable[nn.Module]) -> None:
    """Replace the tensors of modules, built on the meta device for example, by zeros on the CPU.

    Within fake() they are fake ones.
    """
    made: dict[Tensor, Any] = {}  # tensors are hashed by identity

    def imagined(tensor: Tensor) -> Any:
        if tensor not in made:
            plain = torch.zeros(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(plain, tensor.requires_grad) if is_parameter else plain
        return made[tensor]

    for part in (part for module in modules for part in module.modules()):
        for tensors in (part._parameters, part._buffers):
            tensors.update({n: imagined(t) for n, t in tensors.items() if t is not None})


def cost(call: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> Cost:
    """Return what `call` costs, and the backward pass from the sum of its result.

    `parameters` are in memory anyway and do not count as activations.
    """
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in known:
            kept[storage] = tensor
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with FlopCounter() as forward, saved_tensors_hooks(pack, unpack):
        result = call()
    waiting = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    with FlopCounter() as backward:
        result.sum().backward()
    return Cost(forward.total, backward.total, waiting)


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make, as long as a tensor of them lives."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.tensors = known, Counter[int]()  # by storage; those that are known do not count
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.now += size * (self.tensors[key] == 0)
        self.most = max(self.most, self.now)
        self.tensors[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.tensors[key] -= 1
        self.now -= size * (self.tensors[key] == 0)


def peak_bytes(call: Callable[[], Tensor], parameters: Iterable[nn.Parameter]) -> int:
    """Return the most bytes that a call without gradient has at one time, beside inputs and `parameters`."""
    with torch.no_grad(), _LiveBytes({p.untyped_storage()._cdata for p in parameters}) as live:
        call()
    return live.most


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
