"""One optimizer step of SD 1.5 or SDXL with random weights: seconds by phase, FLOPs, peak memory, as JSON.

python tools/gpu_step.py BASE MODE PRECISION DEVICE [--quick]: a process of its own for each, called by
gpu_report.py. The widths and layers are the originals' (tests/published); --quick takes small networks.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rfft import build
from rfft.config.load import load_config
from rfft.config.schema import Config
from rfft.data.sizes import as_size
from rfft.models.bundle import Bundle
from rfft.models.load import load_skeleton, skeleton_batch
from rfft.training.costs import costs
from rfft.training.learner import RFFTLearner
from rfft.training.trainer import set_tf32

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import published, shapes  # noqa: E402

CONFIGS = {"sd15": "sd15_lora_cc", "sdxl": "sdxl_lora_cc"}
MODES = ("denoiser_lora", "controlnet_lora", "controlnet")
PRECISIONS = {  # mixed_precision of rollout, decoder and reward; precision of the objective; frozen weights
    "bf16": ("bf16", "bf16", "bfloat16"),
    "mixed": ("bf16", "fp32", "float32"),  # what the shipped configs have
    "tf32": ("no", "tf32", "float32"),
    "fp16": ("fp16", "fp16", "float32"),
    "fp32": ("no", "fp32", "float32"),
}
OWN = (
    *("model.controlnet=null", "reward.rfnet=rf-tiny-rfnet", "reward.depth=rf-tiny-depth"),
    *("reward.saliency=rf-tiny-saliency", "evaluate.enabled=false", "data.products=adworld:train"),
    *("data.prompts=null", "data.holdout=null", "trainer.accumulation=1", "tracker.kind=none"),
)
QUICK = ("data.image_size=64", "rollout.steps=4", "rollout.last=2", "trainer.batch_size=1")


def settings(name: str, mode: str, precision: str, folder: Path, quick: bool) -> Config:
    """Return the shipped config of the base, one micro-batch a step."""
    mixed, objective, dtype = PRECISIONS[precision]
    own = [f"model.bundle={folder}", f"model.train=[{mode}]", f"trainer.mixed_precision={mixed}"]
    own += [f"objective.precision={objective}", f"model.dtype={dtype}", *OWN, *(QUICK if quick else ())]
    return load_config(CONFIGS[name], own)


def write_base(name: str, folder: Path, quick: bool) -> None:
    """Write the base's config files."""
    if quick:
        shapes.pipeline(name).save_pretrained(folder)
    else:
        published.write(name, folder)


@torch.no_grad()
def random_bundle(config: Config, device: torch.device) -> Bundle:
    """Return the base with random weights, made where they are needed; text encoders stay without any."""
    bundle = load_skeleton(config.model.bundle, getattr(torch, config.model.dtype))
    texts = bundle.family.text_networks()
    for module in [*bundle.modules, bundle.unwrapped]:
        if module not in texts:
            _fill(module, device)
    lora = config.model.lora
    bundle.train(list(config.model.train), lora.rank, lora.alpha, lora.target_modules)
    if config.model.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    return bundle.to(device)


def _fill(module: nn.Module, device: torch.device) -> None:
    if not any(p.is_meta for p in module.parameters()):
        return
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.fill_(float(name.endswith("weight")))
        else:
            parameter.normal_(0, 0.02)


class Phases:
    """Seconds of a step by what is computed; a GPU is waited for at each phase's end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Add the block's seconds to those of a phase."""
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] += time.perf_counter() - began

    def wait(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def watch(self, learner: RFFTLearner) -> None:
        """Measure the learner's denoiser, decoder and backward passes from now on."""
        bundle = learner.bundle
        denoise, preview, backward = bundle.denoiser, bundle.preview, learner.backward

        def called(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                with self.measured(name):
                    return function(*arguments)

            return call

        def denoiser(*arguments: Any) -> Any:
            name = "denoiser with gradient" if torch.is_grad_enabled() else "denoiser without"
            return called(name, denoise)(*arguments)

        bundle.denoiser = denoiser  # type: ignore[assignment]
        bundle.preview = called("decoder", preview)  # type: ignore[method-assign]
        learner.backward = called("backward passes", backward)  # type: ignore[method-assign]


def peak(device: torch.device) -> int:
    """Return the most bytes that were taken: of the GPU's memory, or of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, mode: str, precision: str, device: torch.device, quick: bool) -> dict[str, Any]:
    """Make two steps, and measure the second one."""
    with tempfile.TemporaryDirectory() as folder:
        write_base(name, Path(folder), quick)
        config = settings(name, mode, precision, Path(folder), quick)
        foretold = costs(config)
        set_tf32(config.objective.precision == "tf32")
        rfnet = build.build_rfnet(config, device)
        reward = build.build_reward(config, rfnet, device)
        before = 0 if device.type == "cuda" else peak(device)
        bundle = random_bundle(config, device)
    batch = skeleton_batch(bundle, as_size(config.data.image_size), config.trainer.batch_size)
    mixed = config.trainer.mixed_precision
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="fp16" if mixed == "fp16" else "no")
    learner = RFFTLearner(config, accelerator, bundle, reward, rfnet, batch)
    learner.step()
    phases = Phases(device)
    phases.watch(learner)
    with phases.measured("step"):
        learner.step()
    seconds = dict(phases.seconds)
    whole = seconds.pop("step")
    seconds["rest"] = whole - sum(seconds.values())
    return {
        "seconds": whole,
        "phases": seconds,
        "tflop": foretold.flops / 1e12,
        "peak": peak(device) - before,
        "foretold": foretold.together - (foretold.lasting["text encoders"] if device.type == "cpu" else 0),
    }


def main(arguments: list[str]) -> None:
    """Print what was measured, or why it could not be."""
    name, mode, precision, device, *rest = arguments
    try:
        found = measure(name, mode, precision, torch.device(device), "--quick" in rest)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        found = {"failed": next(iter(str(error).splitlines()), type(error).__name__)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
