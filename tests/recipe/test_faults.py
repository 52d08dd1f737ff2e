"""Faults, each injected into the real command: what is lost (nothing), what is said, what goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from rfft.errors import Interrupted, UserError
from rfft.utils.faults import is_lost_process, require_agreement
from tests.recipe.test_train import PLAIN, Rfft, rfft, rows, weights  # noqa: F401

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1")


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "ACCELERATE_USE_CPU": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000, check=False
    )


def fault(what: str, call: int, **options: object) -> str:
    """A setting that lets it happen at this micro-batch; see tests.toys.Faulty."""
    options |= {"what": what, "call": call}
    return f"reward.terms=[{{use: rfnet}}, {{use: 'tests.toys:Faulty', options: {json.dumps(options)}}}]"


def command(world: Path, *overrides: str) -> list[str]:
    return ["train", str(world / "config.yaml"), "data.count=6", *PLAIN, *overrides]


# ---- killed ----


def test_killed_is_uninterrupted_bit_for_bit(world: Path, tmp_path: Path) -> None:
    """In the middle of a checkpoint write; with KILLS=20 at random moments, too."""
    settings = ["trainer.steps=2", "trainer.checkpoint_every=1", "ema.enabled=true", "optimizer.warmup=3"]
    if os.environ.get("KILLS"):  # base and tuned are evaluated, too; in the end and on the way
        settings += [
            "trainer.steps=4",
            "evaluate.enabled=true",
            "evaluate.every=2",
            "evaluate.reference=null",
        ]
    attempts = [sys.executable, "-m", "tests.attempts", "kill", *command(world, *settings)]
    done = run(attempts, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    kills = int(os.environ.get("KILLS", "1"))
    assert found["kills"] == kills and found["in_a_write"] >= (kills + 1) // 2, found


# ---- several processes ----


@pytest.mark.faults
def test_a_dead_process_is_named_and_the_run_goes_on(world: Path, tmp_path: Path) -> None:
    settings = ["trainer.steps=3", "trainer.checkpoint_every=1", "trainer.keep=9"]
    death = fault("death", 3, rank=1, marker=str(tmp_path / "dead"))
    rfft_train = ["-m", "rfft", *command(world, *settings, death)]
    done = run([sys.executable, *TORCHRUN, *rfft_train], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(exitcode: -9) local_rank: 1" in done.stderr  # torchrun's line
    assert "rfft: process 0: another process has ended or hangs" in done.stderr
    assert "Traceback" not in done.stderr
    metrics = (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]


@pytest.mark.faults
def test_not_a_number_in_one_process_skips_the_step_in_all(
    rfft: Rfft,  # noqa: F811
    world: Path,
    tmp_path: Path,
) -> None:
    """Then one process goes on with what two have begun, at the same place in the data."""
    settings = ["trainer.steps=3", "trainer.checkpoint_every=1", "trainer.keep=9", "rollout.shared_draw=2"]
    bad = fault("nan", 2, rank=1)
    done = run([sys.executable, *TORCHRUN, "-m", "rfft", *command(world, *settings, bad)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["train/skipped"] for row in rows("small")] == [0, 1, 1]
    assert done.stderr.count("step 2 is skipped") == 1
    first, second, third = (weights("small", step) for step in (1, 2, 3))
    assert all(tensor.equal(second[name]) for name, tensor in first.items())
    assert any(not tensor.equal(third[name]) for name, tensor in first.items())

    two = rows("small")
    shutil.rmtree("runs/small/checkpoints/step-000003")
    code, told = rfft(*PLAIN, *settings, bad, "trainer.accumulation=2")
    assert code == 0, told
    assert rows("small")[:2] == two[:2] and rows("small")[2] == pytest.approx(two[2], rel=1e-4, abs=1e-6)


@pytest.mark.faults
def test_a_signal_to_one_process_stops_all(world: Path, tmp_path: Path) -> None:
    """The main process saves, though the other one was asked; nobody reports a lost process."""
    settings = ["trainer.steps=3", "trainer.checkpoint_every=9", fault("signal", 1, rank=1)]
    once = [part for part in TORCHRUN if not part.startswith("--max-restarts")]
    done = run([sys.executable, *once, "-m", "rfft", *command(world, *settings)], tmp_path)
    assert done.stderr.count("rfft: stopped after step 1; the same command goes on from there") == 2
    assert "exitcode  : 75" in done.stderr and "another process" not in done.stderr, done.stderr
    assert [path.name for path in (tmp_path / "runs/small/checkpoints").iterdir()] == ["step-000001"]


def test_what_another_process_leaves_behind_is_known() -> None:
    said = (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3",
        "Timed out waiting 1800000ms for recv operation to complete",
    )
    assert all(is_lost_process(RuntimeError(text)) for text in said)
    assert not is_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("signalled", "code"), [(False, 76), (True, 75)])
def test_a_lost_process_has_its_own_exit_code(
    rfft: Rfft,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    signalled: bool,
    code: int,
) -> None:
    """Or Slurm would start a job again whose other process has made a mistake; not so after a signal."""

    def lost(*_: object) -> None:
        if signalled:
            with suppress(Interrupted):  # as if it had come in the middle of the exchange
                os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("Connection closed by peer [127.0.0.1]:3")

    monkeypatch.setattr("rfft.training.trainer._train", lost)
    found, told = rfft()
    assert found == code and ("another process has ended" in told) != signalled


def test_another_effective_batch_is_said(rfft: Rfft, caplog: pytest.LogCaptureFixture) -> None:  # noqa: F811
    assert rfft(*PLAIN, "trainer.steps=1")[0] == 0
    assert rfft(*PLAIN, "trainer.steps=2", "trainer.batch_size=1", "trainer.accumulation=2")[0] == 0
    assert "samples were drawn" not in caplog.text
    assert rfft(*PLAIN, "trainer.steps=3", "trainer.accumulation=2")[0] == 0
    assert "4 samples were drawn in 2 steps, now it is 4 a step" in caplog.text


def test_processes_that_see_different_files() -> None:
    class Accelerator:
        """Gathers what is here and what another process has: the same, plus `other`."""

        device = "cpu"

        def __init__(self, *other: int) -> None:
            self.other = other

        def gather(self, here: Tensor) -> Tensor:
            return torch.cat([here, here + here.new_tensor(self.other)])

    for other, what in (((1, 0), "checkpoint"), ((0, 1), "products")):
        with pytest.raises(UserError, match=f"runs/a: the processes see different {what}"):
            require_agreement(Accelerator(*other), Path("runs/a"), 3, ["x", "y"])
    require_agreement(Accelerator(0, 0), Path("runs/a"), 3, ["x", "y"])


# ---- the disk ----

MOUNTS = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
MAY_MOUNT = shutil.which("unshare") and not subprocess.call([*MOUNTS, "mount -t tmpfs tmpfs /mnt"])


@pytest.mark.faults
@pytest.mark.skipif(not MAY_MOUNT, reason="nobody may mount a tmpfs here (unshare --map-root-user --mount)")
def test_a_full_disk(world: Path, tmp_path: Path) -> None:
    """A tmpfs of 8 MiB fills up in step 2: its checkpoint is not written, the first one stays."""
    (tmp_path / "runs").mkdir()
    full = fault("full", 2, marker=str(tmp_path / "was-full"))
    arguments = command(world, "trainer.steps=3", "trainer.checkpoint_every=1", full)
    python = [sys.executable, "-m", "tests.attempts", "full", *arguments]
    done = run([*MOUNTS, 'mount -t tmpfs -o size=8m tmpfs runs && exec "$@"', "sh", *python], tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"first": 2, "kept": ["step-000001"], "second": 0}, done.stderr
    assert "step-000002 cannot be written" in done.stderr and "make room" in done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_outside_of_checkpoints(rfft: Rfft, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def write(*_: object) -> None:
        raise OSError(28, "No space left on device", "runs/small/metrics.jsonl")

    monkeypatch.setattr("rfft.utils.log.MetricsFile.write", write)
    code, told = rfft(*PLAIN)
    assert code == 2 and told.endswith(
        "rfft: runs/small/metrics.jsonl: no space left; make room and run the same command again\n"
    )


# ---- memory ----


def test_out_of_memory(rfft: Rfft) -> None:  # noqa: F811
    settings = [*PLAIN, "trainer.checkpoint_every=1", "trainer.steps=3", fault("memory", 2, marker="full")]
    code, told = rfft(*settings)
    line = told.splitlines()[-1]
    assert code == 2 and line.startswith("rfft: out of memory (CUDA out of memory). Try in this order: ")
    order = ["trainer.decode_batch=1", "model.gradient_checkpointing=true", "trainer.batch_size"]
    order += ["Memory of a process: weights", "denoiser's activations", "decoder's and reward's"]
    places = [line.index(words) for words in order]
    assert places == sorted(places)
    assert [row["step"] for row in rows("small")] == [1] and weights("small", 1)
    assert rfft(*settings, "trainer.decode_batch=1", "model.gradient_checkpointing=true")[0] == 0
    assert [row["step"] for row in rows("small")] == [1, 2, 3]


# ---- the tracker ----


@pytest.mark.faults
def test_wandb_unreachable_then_dying(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First recorded offline, said once; then its process is killed: said once, and training goes on."""
    pytest.importorskip("wandb")
    secrets = {"WANDB_API_KEY": "0a1b2c3d4e" * 4, "HF_TOKEN": "hf_" + "5f6a7b8c9d" * 3}
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    for name, value in (secrets | server).items():
        monkeypatch.setenv(name, value)
    arguments = command(world, "tracker.kind=wandb", "trainer.steps=3")
    done = run([sys.executable, "-m", "tests.attempts", "wandb", *arguments], tmp_path)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    monkeypatch.chdir(tmp_path)
    assert [row["step"] for row in rows("small")] == [1, 2, 3]
    assert done.stderr.count("W&B cannot be reached") == done.stderr.count("wandb failed") == 1
    for file in (path for path in Path("runs").rglob("*") if path.is_file()):
        assert not any(secret.encode() in file.read_bytes() for secret in secrets.values()), file


# ---- products ----


def products(folder: Path) -> Path:
    """Four products; of the second one, half a file."""
    folder.mkdir()
    for name in ("a lamp", "a vase", "a mug", "a desk"):
        Image.effect_noise((40, 30), 60).convert("RGBA").save(folder / f"{name}.png")
    broken = folder / "a vase.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (folder / "prompts.json").write_text('[{"prompt": "in a park"}, {"prompt": "on a shelf"}]')
    return folder


def test_a_product_that_cannot_be_read(rfft: Rfft, tmp_path: Path) -> None:  # noqa: F811
    folder = products(tmp_path / "photos")
    own = [*PLAIN, f"data.products={folder}", f"data.prompts={folder}/prompts.json", "trainer.steps=1"]
    code, told = rfft(*own)
    assert code == 2 and "a vase.png: not a readable image" in told and not Path("runs").exists()
    code, told = rfft(*own, "data.on_error=skip")
    assert code == 0 and told.count("products left out: 1, listed in skipped.jsonl; first: ") == 1
    (listed,) = Path("runs/small/skipped.jsonl").read_text().splitlines()
    assert json.loads(listed) == {"id": "a vase", "reason": f"{folder}/a vase.png: not a readable image"}
    for name in ("a lamp", "a mug", "a desk"):
        (folder / f"{name}.png").write_bytes(b"")
    code, told = rfft(*own, "data.on_error=skip", "run.name=none")
    assert code == 2 and "none of the 4 products can be used: " in told and not Path("runs/none").exists()
