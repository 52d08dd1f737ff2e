"""How an optimizer step is spread over processes: by DDP or DeepSpeed's ZeRO; fsdp.py has one way more.

The step itself knows none of this: it calls a denoiser and hands over losses. One optimizer step is made of
several backward passes, and processes exchange gradients in the last of them alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rfft.errors import UserError
from rfft.types import Conditioning, Denoise, Denoised, NoiseLevel

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET = 50_000_000  # gradients reduced at a time; DeepSpeed's own buffer would take 2 GB
FSDP2 = "RFFT_USE_FSDP2"


class Engine:
    """One process, or DDP: each process has all weights and the whole optimizer state."""

    denoiser: Denoise  # the module as the training step is to call it, where it is a generator's

    def __init__(self, accelerator: Any, module: nn.Module, optimizer: torch.optim.AdamW) -> None:
        """Prepare a module, some of whose parameters are trained, and the optimizer of these."""
        self.accelerator = accelerator
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.model, self.optimizer = accelerator.prepare(module, optimizer)
        self.buffers = list(module.buffers())  # only now: new ones where the module was moved
        # Autocast is the step's own business: accelerate's would take in what must stay in full precision.
        accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.denoiser = self.model
        self.left = 0

    def begin(self, backwards: int) -> None:
        """Begin an optimizer step of so many backward passes."""
        self.left = backwards
        self._before_forward()

    def backward(self, loss: Tensor) -> None:
        """Add up the gradients of loss / accumulation."""
        self.accelerator.backward(loss)
        self.left -= 1
        self._before_forward()

    def _before_forward(self) -> None:
        if isinstance(self.model, DistributedDataParallel):
            self.model.require_backward_grad_sync = self.left == 1

    def clip(self, max_norm: float) -> Tensor:
        """Clip the gradient; returns its norm before that, over all processes."""
        norm: Tensor = self.accelerator.clip_grad_norm_(self.parameters, max_norm)
        return norm

    def step(self) -> None:
        """Change the weights by what has been added up."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    def whole(self) -> AbstractContextManager[None]:
        """Return a context in which each process has all weights, and may call the model without gradient.

        All processes enter it together; whether and how often one calls the model is its own affair.
        """
        return nullcontext()

    def gather(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return whole tensors in the first process; to be called in all processes together."""
        return weights

    def split(self, weights: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return this process's parts of whole tensors, which all processes have, as `like` is split."""
        return dict(weights)

    def collect(self) -> None:
        """Collect what state_dict() returns; to be called in all processes together, before it."""

    def state_dict(self) -> dict[str, Any]:
        """Return AdamW's state, the same whatever the engine: a run may go on under another one."""
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over AdamW's state; the weights have to be loaded first."""
        self.optimizer.load_state_dict(state)


class Zero(Engine):
    """DeepSpeed's ZeRO-1 and 2: gradients and optimizer state are split over the processes, weights not.

    Weights stay in fp32 and half precision the step's own autocast, as under DDP.
    """

    def __init__(
        self, accelerator: Any, module: nn.Module, optimizer: torch.optim.AdamW, settings: dict[str, Any]
    ) -> None:
        """Prepare as Engine does; `settings`: what DeepSpeed must know of the config, under its own names."""
        plugin = accelerator.state.deepspeed_plugin
        plugin.deepspeed_config |= settings
        plugin.deepspeed_config["train_batch_size"] = "auto"
        plugin.deepspeed_config["zero_optimization"].setdefault("reduce_bucket_size", BUCKET)
        plugin.deepspeed_config["gradient_accumulation_steps"] = accelerator.gradient_accumulation_steps
        self.module, self.adamw = module, optimizer
        super().__init__(accelerator, module, optimizer)
        self.zero = self.model.optimizer
        self.denoiser = self._denoise
        self.gathered: dict[int, Any] = {}

    def _denoise(self, x: Tensor, level: NoiseLevel, cond: Conditioning, edges: Tensor) -> Denoised:
        # DeepSpeed's forward takes part in the backward pass, and switches autocast off.
        forward = self.model if torch.is_grad_enabled() else self.module
        denoised: Denoised = forward(x, level, cond, edges)
        return denoised

    def _before_forward(self) -> None:
        self.model.set_gradient_accumulation_boundary(self.left == 1)

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)  # accelerate's would step at once
        self.left -= 1
        if self.left:
            self._before_forward()

    def clip(self, max_norm: float) -> Tensor:
        """Clip the gradient and make the step in one, unless the norm is infinite or no number."""
        self.model.step()
        return torch.as_tensor(self.model.get_global_grad_norm(), device=self.accelerator.device).float()

    def step(self) -> None:
        pass

    def zero_grad(self) -> None:
        pass

    def collect(self) -> None:
        from deepspeed.utils import safe_get_full_optimizer_state

        (flat,) = self.zero.single_partition_of_fp32_groups
        if "step" in self.adamw.state.get(flat, {}):
            step = self.adamw.state[flat]["step"].cpu().clone()
            moments = [
                {name: safe_get_full_optimizer_state(p, name).cpu() for name in MOMENTS}
                for p in self.parameters
            ]
            self.gathered = {i: {"step": step.clone(), **pair} for i, pair in enumerate(moments)}

    def state_dict(self) -> dict[str, Any]:
        (group,) = self.adamw.param_groups
        return {
            "state": self.gathered,
            "param_groups": [{**group, "params": list(range(len(self.parameters)))}],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self.zero.refresh_fp32_params()  # its own copy of the weights
        (group,), (saved,) = self.adamw.param_groups, state["param_groups"]
        group.update({name: value for name, value in saved.items() if name != "params"})
        if not state["state"]:
            return
        (flat,) = group["params"]
        step = state["state"][0]["step"].clone()
        self.adamw.state[flat] = {"step": step, **{name: torch.zeros_like(flat) for name in MOMENTS}}
        self.zero._lazy_init_hp_params_optimizer_state()  # made by the first step otherwise
        for i, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                value = state["state"][i][name].to(flat.device)
                safe_set_full_optimizer_state(parameter, value, name)


def uses_deepspeed() -> bool:
    """Return whether the launcher asked for DeepSpeed."""
    return _asked("ACCELERATE_USE_DEEPSPEED")


def uses_fsdp() -> bool:
    """Return whether the launcher asked for FSDP; check_launch() gives the request a name of our own."""
    return _asked("ACCELERATE_USE_FSDP") or _asked(FSDP2)


def require_ddp(what: str) -> None:
    """Raise a UserError where the launcher asked for anything else; `what`: a small network to train."""
    if uses_deepspeed() or uses_fsdp():
        raise UserError(f"{what} is small and trains under DDP alone: take launch/multi_gpu.yaml")


def check_launch(mixed_precision: str) -> None:
    """Raise a UserError for what cannot train; set the environment as our engines need it."""
    if not (uses_deepspeed() or uses_fsdp()):
        return
    if mixed_precision == "fp16":
        raise UserError(
            "DeepSpeed and FSDP2 do not know fp16's loss scale here: set trainer.mixed_precision=bf16 or no"
        )
    if uses_fsdp():
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError("FSDP1 is not supported: take launch/fsdp2.yaml, or set fsdp_version: 2")
        # Accelerate would split models by itself, on GPUs alone, and transformers load them in one process.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        os.environ[FSDP2] = "true"
        return
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("1", "2"):
        raise UserError(
            f"ZeRO-{stage} is not supported: take launch/fsdp2.yaml, which splits the weights as well, or "
            "launch/deepspeed_zero2.yaml"
        )
    if not torch.accelerator.is_available():  # DeepSpeed has to be told
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"
