"""The hub: what would be pushed, what is fetched, and what is said where there is no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rfft.build import caption_tokenizer
from rfft.errors import UserError
from rfft.models import hub
from rfft.models.pretrained import ASSETS
from rfft.rewards import RFNet
from rfft.rewards.maps import MapNet
from rfft.rewards.rfnet import RFNetConfig
from tests.repository import Repository

EMBEDDED = ASSETS / "rf-tiny-rfnet"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(tmp_path / "hub", monkeypatch)


def test_rfnet_goes_to_the_hub_and_comes_back(repository: Repository) -> None:
    """With its tokenizer, its report and a card; by the hub id it can be asked for verdicts."""
    network = RFNet.from_pretrained("rf-tiny-rfnet")
    assert network.push_to_hub("me/inspector", private=True).startswith("https://")
    pushed = repository.folder / "me/inspector"
    assert {file.name for file in pushed.iterdir()} == {
        *("config.json", "model.safetensors", "README.md", "report.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert repository.options["private"] is True
    card = (pushed / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "rfft"
    assert 'rfnet="me/inspector"' in card and "| depth by | rf-tiny-depth |" in card
    report = json.loads((EMBEDDED / "report.json").read_text())
    recall = next(iter(report.values()))["classes"]["available"]["recall"]
    assert f"| {100 * recall:.1f} |" in card and card.count("## Metrics") == len(report)
    fetched = RFNet.from_pretrained("me/inspector")
    assert fetched.config == network.config
    weights = network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in fetched.state_dict().items())
    assert caption_tokenizer("me/inspector").vocab_size == caption_tokenizer("rf-tiny-rfnet").vocab_size


def test_a_trained_rfnets_card_has_the_runs_metrics(tmp_path: Path, repository: Repository) -> None:
    folder = tmp_path / "runs/mine/rfnet"
    shutil.copytree(EMBEDDED, folder, ignore=shutil.ignore_patterns("report.json"))
    report = next(iter(json.loads((EMBEDDED / "report.json").read_text()).values()))
    (folder.parent / "evaluation.json").write_text(json.dumps({"data": "data/rf1m-test", **report}))
    RFNet.from_pretrained(folder).push_to_hub("me/mine")
    assert "## Metrics: data/rf1m-test" in (repository.folder / "me/mine/README.md").read_text()


def test_a_network_without_its_tokenizer_is_not_pushed(repository: Repository) -> None:
    with pytest.raises(UserError, match="no tokenizer beside it"):
        RFNet(RFNetConfig.tiny(64)).push_to_hub("me/mute")
    assert not repository.folder.exists()


def test_without_a_network_one_line_says_so() -> None:
    for load in (RFNet.from_pretrained, MapNet.from_pretrained):
        with pytest.raises(UserError, match="owner/name: neither a folder nor a hub id that loads") as error:
            load("owner/name")
        assert "\n" not in str(error.value)
    for push in (RFNet.from_pretrained("rf-tiny-rfnet").push_to_hub, lambda name: hub.upload(EMBEDDED, name)):
        with pytest.raises(UserError, match="cannot be pushed to the hub .*; log in with") as error:
            push("owner/name")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be pushed to the hub"):
        hub.upload(EMBEDDED, "no/such/name")


@pytest.mark.parametrize("name", ["../secrets", "a/b/c", "/etc/passwd", "./model"])
def test_paths_are_no_hub_ids(name: str) -> None:
    assert not hub.is_hub_id(name)
