"""The loop of examples/loop.md: simulated raters over HTTP, RFNet from their labels, RFFT, two rounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rfft.feedback.vote_store import VoteStore

RUN = Path(__file__).parents[2] / "examples" / "loop" / "run.py"
SIZES = {"--pictures": 120, "--held-out": 60, "--test": 24, "--scenes": 3000, "--rater-steps": 500}
SHORT = (
    *("trainer.steps=12", "trainer.checkpoint_every=6", "trainer.sample_every=0"),
    *("evaluate.count=12", "evaluate.prompts_per_product=1"),
)


@pytest.mark.long
def test_two_rounds(tmp_path: Path) -> None:
    sizes = [str(part) for pair in SIZES.items() for part in pair]
    command = [sys.executable, str(RUN), "--out", str(tmp_path), *sizes, *SHORT]
    subprocess.run(command, check=True)
    found = json.loads((tmp_path / "loop.json").read_text())
    assert [row["round"] for row in found] == [1, 2]
    for row in found:
        folder = tmp_path / f"round-{row['round']}"
        for name, pictures in (("train", SIZES["--pictures"]), ("held", SIZES["--held-out"])):
            plain = [
                vote for vote in VoteStore(folder / f"{name}.db").votes("labels") if vote.kind == "plain"
            ]
            assert len({(vote.left, vote.rater) for vote in plain}) == len(plain) == 3 * pictures
        gsb = row["gsb"]["gsb"]["overall"]
        assert gsb["good"] + gsb["same"] + gsb["bad"] == 3 * SIZES["--test"]
    first = found[0]["rfnet"]
    assert (
        first["after"]["agreement"] > first["before"]["agreement"]
    )  # RFNet has learned these people's taste

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    subprocess.run(command, check=True)  # all is done: nothing is made anew
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert json.loads((tmp_path / "loop.json").read_text()) == found
