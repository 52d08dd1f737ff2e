"""Training by a service's verdicts: the one of docs/rewards.md as it stands, which dies and comes back."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

DOCS = Path(__file__).parents[2] / "docs/rewards.md"


@contextmanager
def service(port: int) -> Iterator[None]:
    """The service of the docs, at another port, until it is killed."""
    (code,) = re.findall(r"```python\n(import base64.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    process = subprocess.Popen(
        [sys.executable, "-c", code.replace("8000", str(port))], stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_service_that_dies_and_comes_back(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"{{url: 'http://127.0.0.1:{port}/score', retries: 0, timeout: 10}}"
    settings = [f"reward.terms=[{{use: http, options: {options}}}]", "reward.rfnet=null", "objective.use=nft"]
    settings += ["evaluate.enabled=false", "trainer.sample_every=0", "data.count=2"]
    settings += ["objective.options={group: 2}", "rollout.grad_steps=1"]

    def train(steps: int) -> tuple[int, str]:
        AcceleratorState._reset_state(reset_partial_state=True)
        code, _, told = run_command("train", world / "config.yaml", *settings, f"trainer.steps={steps}")
        return code, told

    with service(port):
        assert train(1)[0] == 0
    code, told = train(2)
    assert code == 2 and "reward http: no verdict from http://127.0.0.1" in told.splitlines()[-1]
    assert "the same command again" in told.splitlines()[-1] and "Traceback" not in told
    with service(port):
        code, told = train(2)
    assert code == 0 and "goes on after step 1 of 2" in told
    rows = [json.loads(line) for line in Path("runs/small/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and all(0 < row["train/http/score"] < 1 for row in rows)
