"""The launch files: each can be read, and those that can start on two CPU processes are started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors.torch import load_file
from torch import Tensor

from rfft.errors import UserError
from rfft.training.distributed import FSDP2, check_launch, uses_fsdp
from tests import bases

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
FILES = {
    "single_gpu": ("NO", 1),
    "multi_gpu": ("MULTI_GPU", 8),
    "multi_node": ("MULTI_GPU", 16),
    "deepspeed_zero2": ("DEEPSPEED", 8),
    "cpu_zero2": ("DEEPSPEED", 2),
    "fsdp2": ("FSDP", 8),
}
TINY = (
    *("data.count=6", "trainer.steps=2", "trainer.batch_size=2", "trainer.sample_every=0"),
    *("rollout.steps=8", "rollout.last=4", "evaluate.enabled=false"),
    "trainer.mixed_precision=no",  # FSDP2 rolls out without merging: the same but for rounding
)
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--config_file")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def test_every_file_is_known_here() -> None:
    assert {file.stem for file in LAUNCH.glob("*.yaml")} == FILES.keys()
    assert {file.name for file in LAUNCH.iterdir()} - {f"{name}.yaml" for name in FILES} == {
        "cpu_ddp.sh",
        "cpu_fsdp2.sh",
        "slurm.sbatch",
    }


@pytest.mark.parametrize(("name", "expected"), FILES.items())
def test_accelerate_reads(name: str, expected: tuple[str, int]) -> None:
    read = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert (read.distributed_type, read.num_processes) == expected


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("multi_gpu", ("--num_processes=4",), {"nproc_per_node": "4"}),
        ("fsdp2", (), {"nproc_per_node": "8", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}),
        (
            "multi_node",
            ("--machine_rank=1", "--main_process_ip=first"),
            {"nproc_per_node": "8", "nnodes": "2", "node_rank": 1}
            | {"rdzv_endpoint": "first:29500", "rdzv_backend": "static"},
        ),
    ],
)
def test_accelerate_would_start(
    monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...], expected: dict[str, object]
) -> None:
    """What it hands to torchrun, which there are no GPUs for here, and in the environment."""
    found: dict[str, object] = {}
    monkeypatch.setattr("torch.distributed.run.run", lambda args: found.update(os.environ | vars(args)))
    file = ["--config_file", str(LAUNCH / f"{name}.yaml"), *options]
    launch_command(launch_command_parser().parse_args([*file, "-m", "rfft", "train", "tiny"]))
    expected |= {"module": True, "training_script": "rfft", "training_script_args": ["train", "tiny"]}
    assert found | expected == found


@pytest.mark.parametrize("name", ["cpu_ddp.sh", "cpu_fsdp2.sh", "slurm.sbatch"])
def test_bash_reads(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True), (76, False)])
def test_slurm_requeues_what_was_interrupted(tmp_path: Path, code: int, requeued: bool) -> None:
    """srun and scontrol are stand-ins; the one runs the task, whose python notes what it was given."""
    commands = {
        "srun": 'echo "$1 $2" > srun.log; SLURM_PROCID=3 SLURM_NTASKS=16 SLURM_LOCALID=1 exec "${@:3}"',
        "scontrol": 'echo "$@" >> scontrol.log; [ "$1" = show ] && printf "first\\nsecond\\n"',
        "python": 'echo "$RANK/$WORLD_SIZE/$LOCAL_RANK@$MASTER_ADDR:$MASTER_PORT $@" > task.log\n'
        f"exit {code}",
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "8"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", LAUNCH / "slurm.sbatch", "rfnet", "train", "tiny", "run.name=a b"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == code
    assert (tmp_path / "task.log").read_text() == "3/16/1@first:23456 -m rfft rfnet train tiny run.name=a b\n"
    assert (tmp_path / "srun.log").read_text() == "--cpus-per-task=8 --wait=120\n"
    assert ("requeue 123456" in (tmp_path / "scontrol.log").read_text()) == requeued


@pytest.mark.parametrize(
    ("environment", "precision", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "no", "FSDP1 .* take launch/fsdp2.yaml"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fp16", "trainer.mixed_precision=bf16"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "no",
            "ZeRO-3 .* take launch/fsdp2.yaml",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "fp16", "trainer.mixed_precision=bf16"),
    ],
)
def test_what_cannot_train_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], precision: str, message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launch(precision)


def test_accelerate_does_not_hear_of_fsdp2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(FSDP2, "false")  # so that it is put back
    for _ in range(2):
        check_launch("bf16")
        assert "ACCELERATE_USE_FSDP" not in os.environ and uses_fsdp()


# ---- real starts, two processes each ----


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "RANKS": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # torchrun, ninja
    }
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)


def launch(folder: Path, *command: object) -> None:
    job = start([str(part) for part in command], folder)
    _, told = job.communicate(timeout=3000)
    assert job.returncode == 0, told


def steps(run: Path) -> list[float]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Mean over all weights. The largest says little: where gradients cancel out, Adam amplifies rounding."""
    return float(torch.cat([(a[name] - b[name]).abs().flatten() for name in a]).mean())


def checkpoint(run: Path, step: int) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06}" / "adapter.safetensors")


def ranks(folder: Path) -> list[dict[str, Tensor]]:
    """What tests/recipe/ranks.py left; copies, as the next job writes the same files."""
    files = [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]
    return [{name: tensor.clone() for name, tensor in weights.items()} for weights in files]


def exported(run: Path) -> dict[str, Tensor]:
    return load_file(run / "export" / "diffusers" / "pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def by_ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of rf-tiny that others are compared with."""
    folder = tmp_path_factory.mktemp("ddp")
    launch(folder, LAUNCH / "cpu_ddp.sh", "train", "tiny", *TINY, "run.name=ddp")
    return folder / "runs/ddp"


@pytest.mark.launch
@pytest.mark.parametrize("engine", ["zero2", "fsdp2"])
def test_rf_tiny_by_every_launch_file(by_ddp: Path, tmp_path: Path, engine: str) -> None:
    """All of them start, and export the same LoRA."""
    if engine == "zero2":
        pytest.importorskip("deepspeed")
    zero2 = (*ACCELERATE, LAUNCH / "cpu_zero2.yaml", "-m", "rfft", "train")
    launcher = {"zero2": zero2, "fsdp2": (LAUNCH / "cpu_fsdp2.sh", "train")}[engine]
    launch(tmp_path, *launcher, "tiny", *TINY, "run.name=other")
    ddp, other = by_ddp, tmp_path / "runs/other"
    assert steps(ddp) == steps(other) == [1, 2]
    moved = {name: tensor for name, tensor in exported(ddp).items() if "lora_B" in name}  # from zero
    assert distance(exported(ddp), exported(other)) < 0.01 * distance(moved, _zeros(moved))


def _zeros(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


@pytest.mark.launch
@pytest.mark.parametrize("launcher", ["torchrun", "multi_node"])
def test_two_machines_end_with_the_same_weights(world: Path, tmp_path: Path, launcher: str) -> None:
    """Two agents of torchrun meet over the loopback, one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agent = {
        "torchrun": [*TORCHRUN, "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
        + [f"--master_port={port}", "--node_rank"],
        "multi_node": [*ACCELERATE, str(LAUNCH / "multi_node.yaml"), "--num_processes=2"]
        + ["--main_process_ip=127.0.0.1", f"--main_process_port={port}", "--machine_rank"],
    }[launcher]
    train = [str(ROOT / "tests/recipe/ranks.py"), "train", str(world / "config.yaml"), *TINY]
    jobs = [start([*agent, rank, *train, "rollout.grad_steps=2"], tmp_path) for rank in ("0", "1")]
    told = [job.communicate(timeout=3000)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    first, second = ranks(tmp_path)
    assert same(first, second)
    assert same(first, checkpoint(tmp_path / "runs/small", 2))


@pytest.mark.launch
def test_zero2_goes_on_under_itself_and_under_ddp(world: Path, tmp_path: Path) -> None:
    """Weights are alike on both ranks, bit for bit, and after a resume those of the uninterrupted run."""
    pytest.importorskip("deepspeed")
    settings = [*TINY, "rollout.grad_steps=2", "trainer.accumulation=2", "ema.enabled=true"]
    every = ["trainer.steps=4", "trainer.checkpoint_every=2", "trainer.keep=9"]
    command = (ROOT / "tests/recipe/ranks.py", "train", world / "config.yaml", *settings, *every)
    zero2, ddp = (*ACCELERATE, LAUNCH / "cpu_zero2.yaml"), (*TORCHRUN, "--standalone", "--nproc_per_node=2")
    launch(tmp_path, *zero2, *command, "run.out=whole")
    first, second = ranks(tmp_path)
    assert same(first, second)
    assert same(first, checkpoint(tmp_path / "whole/small", 4))

    moved = distance(first, checkpoint(tmp_path / "whole/small", 2))
    for out, launcher in (("zero2", zero2), ("ddp", ddp)):
        shutil.copytree(tmp_path / "whole", tmp_path / out)
        shutil.rmtree(tmp_path / out / "small/checkpoints/step-000004")
        launch(tmp_path, *launcher, *command, f"run.out={out}")
        assert steps(tmp_path / out / "small") == [1, 2, 3, 4]
        last = checkpoint(tmp_path / out / "small", 4)
        assert same(first, last) if out == "zero2" else distance(first, last) < 0.01 * moved


@pytest.mark.launch
@pytest.mark.parametrize("engine", ["zero2", "fsdp2"])
def test_not_a_number_in_one_process_skips_the_step_in_all(world: Path, tmp_path: Path, engine: str) -> None:
    """Under DeepSpeed and FSDP2 as under DDP."""
    if engine == "zero2":
        pytest.importorskip("deepspeed")
    nan = "reward.terms=[{use: rfnet}, {use: 'tests.toys:Faulty', options: {what: nan, call: 2, rank: 1}}]"
    settings = [*TINY, nan, "trainer.steps=3", "trainer.checkpoint_every=1", "trainer.keep=9"]
    zero2 = (*ACCELERATE, LAUNCH / "cpu_zero2.yaml", "-m", "rfft", "train")
    launcher = {"zero2": zero2, "fsdp2": (LAUNCH / "cpu_fsdp2.sh", "train")}[engine]
    launch(tmp_path, *launcher, world / "config.yaml", *settings)
    run = tmp_path / "runs/small"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/skipped"] for row in rows] == [0, 1, 1]
    first, second, third = (checkpoint(run, step) for step in (1, 2, 3))
    assert same(first, second) and not same(second, third)


@pytest.mark.launch
def test_fsdp2_trains_the_whole_controlnet_as_ddp_does(world: Path, tmp_path: Path) -> None:
    """With evaluations on the way, whose forwards are dealt out unevenly; and goes on under both."""
    settings = [*TINY, "evaluate.enabled=true", "evaluate.every=2", "trainer.sample_every=1"]
    settings += ["evaluate.reference=null", "model.train=[controlnet]", "model.gradient_checkpointing=true"]
    settings += ["rollout.grad_steps=2", "trainer.accumulation=2", "ema.enabled=true"]
    settings += ["optimizer.lr=1e-3"]  # smaller steps, and L_CC would tell rounding from rounding
    command = ["train", world / "config.yaml", *settings, "trainer.steps=4", "trainer.checkpoint_every=2"]
    fsdp2, ddp = LAUNCH / "cpu_fsdp2.sh", LAUNCH / "cpu_ddp.sh"
    for name, launcher in (("fsdp2", fsdp2), ("ddp", ddp)):
        launch(tmp_path, launcher, *command, "trainer.keep=9", f"run.out={name}")
    whole = checkpoint(tmp_path / "fsdp2/small", 4)
    moved = distance(whole, checkpoint(tmp_path / "fsdp2/small", 2))
    assert distance(whole, checkpoint(tmp_path / "ddp/small", 4)) < 0.01 * moved

    for name, launcher in (("again", fsdp2), ("further", ddp)):
        shutil.copytree(tmp_path / "fsdp2", tmp_path / name)
        shutil.rmtree(tmp_path / name / "small/checkpoints/step-000004")
        launch(tmp_path, launcher, *command, "trainer.keep=9", f"run.out={name}")
        last = checkpoint(tmp_path / name / "small", 4)
        assert same(whole, last) if name == "again" else distance(whole, last) < 0.01 * moved


@pytest.mark.launch
@pytest.mark.parametrize("name", ["sd3", "kolors", "flux", "qwen_image"])
def test_newer_bases_are_trained_by_two_processes(world: Path, tmp_path: Path, name: str) -> None:
    """Under DDP, which wants a gradient of all that is trained, and under FSDP2, with checkpointing."""
    bases.save(name, tmp_path / "base")
    targets = "model.lora.target_modules=[to_q, to_out.0, add_q_proj, to_add_out]"
    settings = [
        *TINY,
        f"model.bundle={tmp_path / 'base'}",
        "model.train=[denoiser_lora, controlnet]",
        targets,
    ]
    settings += ["rollout.steps=4", "rollout.last=2", "rollout.grad_steps=2", "optimizer.lr=1e-3"]
    command = ["train", world / "config.yaml", *settings, "model.gradient_checkpointing=true"]
    every = ["trainer.keep=9", "trainer.checkpoint_every=1"]
    for engine in ("ddp", "fsdp2"):
        launch(tmp_path, LAUNCH / f"cpu_{engine}.sh", *command, f"run.out={engine}", *every)
    ddp, fsdp2 = (checkpoint(tmp_path / engine / "small", 2) for engine in ("ddp", "fsdp2"))
    first = checkpoint(tmp_path / "fsdp2/small", 1)
    assert distance(ddp, fsdp2) < 0.02 * distance(fsdp2, first)


@pytest.mark.launch
def test_two_processes_generate_what_one_does(world: Path, tmp_path: Path) -> None:
    command = ("-m", "rfft", "generate", "--products", "adworld:train", "--config", world / "config.yaml")
    for out, launcher in (
        ("one", (sys.executable,)),
        ("two", (*TORCHRUN, "--standalone", "--nproc_per_node=2")),
    ):
        launch(tmp_path, *launcher, *command, "--out", out, "data.count=5", "evaluate.batch_size=2")
    one, two = tmp_path / "one", tmp_path / "two"
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert len(files) == 13 and {path.relative_to(two) for path in two.rglob("*") if path.is_file()} == files
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


@pytest.mark.launch
def test_two_processes_evaluate_what_one_does(world: Path, tmp_path: Path) -> None:
    """To the byte; pictures go to the first process alone, all that others get is smaller than one batch."""
    command = (ROOT / "tests/recipe/sent.py", "evaluate", world / "config.yaml", "evaluate.reference=null")
    for out, launcher in (
        ("one", (sys.executable,)),
        ("two", (*TORCHRUN, "--standalone", "--nproc_per_node=2")),
    ):
        launch(tmp_path, *launcher, *command, "--out", out, "evaluate.batch_size=2")
    one, two = tmp_path / "one", tmp_path / "two"
    files = {path.relative_to(one) for path in one.rglob("*.png")}
    assert files and {path.relative_to(two) for path in two.rglob("*.png")} == files
    for file in (*files, Path("summary.json"), Path("evaluation.json")):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    pictures = 2 * 3 * 64 * 64  # bytes of a batch's
    sent = int((tmp_path / "1.txt").read_text())
    assert sent - features(2) < pictures


def features(count: int) -> int:
    """Bytes of what is measured of `count` pictures by EfficientNet: features and those of the background."""
    return count * 2 * 4 * 1280
