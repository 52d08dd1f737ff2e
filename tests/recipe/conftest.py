"""A whole small world of random weights, for recipes that only have to run through."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CLIPTokenizer

from rfft.adworld import assets
from rfft.cli.main import main
from rfft.rewards.judge import Judge, JudgeConfig
from rfft.rewards.maps import MapNet, MapNetConfig
from rfft.rewards.probe import Probe, ProbeConfig
from rfft.rewards.rfnet import RFNet, RFNetConfig

CLASSES = {
    "surface": list(assets.SURFACES),
    "place": list(assets.PLACES),
    "prop": list(assets.PROP_NAMES),
    "light": list(assets.LIGHTS),
}


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """run_command(*arguments) -> (exit code, stdout, stderr) of `rfft`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rfft", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run


@pytest.fixture
def rfft(run_command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, list[str]]]:
    """rfft(*arguments) -> (exit code, lines of stderr)."""

    def run(*arguments: object) -> tuple[int, list[str]]:
        code, _, err = run_command(*arguments)
        return code, err.splitlines()

    return run


@pytest.fixture(scope="session")
def world(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rfnet/, depth/, saliency/, judge/, probe/, and config.yaml, which uses them and a random pipeline."""
    folder = tmp_path_factory.mktemp("world")
    tokenizer = CLIPTokenizer.from_pretrained(pipeline_folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        _save_networks(folder, len(tokenizer))
    for name in ("rfnet", "judge"):
        tokenizer.save_pretrained(folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(folder, pipeline_folder)))
    return folder


def _save_networks(folder: Path, vocab_size: int) -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    maps = {name: str(folder / name) for name in ("depth", "saliency")}
    config = RFNetConfig.tiny(vocab_size, image_size=32, width=16, heads=2, n2=1, picture_size=64, **maps)
    config.text_encoder |= text
    config.image_encoder |= {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    rfnet = RFNet(config)
    rfnet.head[-1].weight.data *= 30  # so that its verdicts differ from picture to picture
    rfnet.save_pretrained(folder / "rfnet")
    for name in ("depth", "saliency"):
        MapNet(MapNetConfig(widths=[4, 8])).save_pretrained(folder / name)
    Judge(JudgeConfig(vocab_size=vocab_size, widths=[4, 8, 8], text_width=8)).save_pretrained(
        folder / "judge"
    )
    Probe(ProbeConfig(classes=CLASSES, widths=[4, 8])).save_pretrained(folder / "probe")


def _config(folder: Path, pipeline_folder: Path) -> dict[str, object]:
    networks = {name: str(folder / name) for name in ("rfnet", "depth", "saliency")}
    return {
        "run": {"name": "small"},
        "model": {
            "bundle": str(pipeline_folder),
            "lora": {"rank": 2, "alpha": 4, "target_modules": ["to_q", "to_v", "conv1"]},
        },
        "reward": networks,
        "rollout": {"steps": 4, "last": 2, "guidance_scale": 3.0},
        "trainer": {"steps": 2, "batch_size": 2, "accumulation": 1},
        "evaluate": {
            "judge": str(folder / "judge"),
            "probe": str(folder / "probe"),
            "count": 3,
            "prompts_per_product": 2,
            "seeds": 2,
            "batch_size": 4,
            "max_attempts": 3,
            "validation": {"count": 2},
        },
    }
