"""On a CUDA device: half precision with and without a loss scale, TF32's switches, launch files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rfft.models.bundle import Bundle
from rfft.objectives.base import ObjectiveSettings
from rfft.objectives.regularizers import ConsistentCondition
from rfft.objectives.surrogate import Surrogate
from rfft.training.trainer import set_tf32
from rfft.types import Batch, Reward
from tests.rows import rows

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
LAUNCH = Path(__file__).parents[2] / "launch"
SHORT = ("evaluate.enabled=false", "trainer.sample_every=0", "data.count=4")


def gradient(bundle: Bundle, reward: Reward, batch: Batch, precision: str) -> Tensor:
    """The LoRA's gradient at one late step, on the GPU."""
    settings = ObjectiveSettings(3.0, ConsistentCondition(), 0.01, precision)  # type: ignore[arg-type]
    Surrogate(settings).step(bundle, reward, batch, bundle.schedule(8), [6], Tensor.backward)
    found = torch.cat([p.grad.flatten() for p in bundle.trainable().values() if p.grad is not None])
    bundle.unwrapped.zero_grad()
    return found


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_gradients_of_lower_precision_point_where_those_of_fp32_do(
    make_trained: Callable[..., Bundle], make_batch: Callable[..., Batch], reward: Reward, precision: str
) -> None:
    bundle = make_trained("denoiser_lora")
    batch = make_batch(bundle).to("cuda")
    bundle.to("cuda")
    reward.to("cuda")  # type: ignore[attr-defined]
    set_tf32(False)
    exact = gradient(bundle, reward, batch, "fp32")
    set_tf32(precision == "tf32")
    rounded = gradient(bundle, reward, batch, precision)
    set_tf32(False)
    assert exact.isfinite().all() and torch.cosine_similarity(exact, rounded, dim=0) > 0.95


def test_tf32_is_switched_for_products_and_convolutions_alike() -> None:
    x, w = torch.randn(256, 256, device="cuda"), torch.randn(256, 256, device="cuda")
    exact = x.double() @ w.double()
    errors = []
    for allowed in (False, True):
        set_tf32(allowed)
        conv = torch.nn.functional.conv2d(x.T[None, :, :, None], w.T[:, :, None, None])[0, :, :, 0].T
        errors.append([(found - exact).abs().max().item() for found in (x @ w, conv)])
    set_tf32(False)
    assert all(rounded > 10 * plain for plain, rounded in zip(*errors, strict=True))


@pytest.mark.parametrize("settings", [("trainer.mixed_precision=fp16",), ("trainer.mixed_precision=bf16",)])
def test_the_command_line_trains_in_half_precision(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., tuple[int, str, str]],
    settings: tuple[str, ...],
) -> None:
    """fp16's scaler may skip its first steps while it looks for its scale."""
    monkeypatch.chdir(tmp_path)
    code, _, told = run_command("train", world / "config.yaml", *SHORT, *settings, "trainer.steps=12")
    assert code == 0, told
    assert rows("small")[-1]["train/skipped"] < 12


@pytest.mark.parametrize("file", ["single_gpu.yaml", "multi_gpu.yaml", "fsdp2.yaml"])
def test_launch_files_on_one_card(world: Path, tmp_path: Path, file: str) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / file)]
    command += ["--num_processes", "1", "-m", "rfft", "train", str(world / "config.yaml"), *SHORT]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-2000:]
