"""The networks that look at the pictures of an evaluation: loaded once, for all grids of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from rfft import build
from rfft.config.schema import Config
from rfft.generation.sample import reward_logits
from rfft.metrics.features import EfficientNetLite0, load_efficientnet_lite0
from rfft.models.layers import ScoreReward
from rfft.rewards.availability import RFNetWithMaps
from rfft.rewards.judge import Judge
from rfft.rewards.people import load_aesthetic, load_pickscore
from rfft.rewards.preference import TextMatch
from rfft.rewards.probe import Probe
from rfft.rewards.rfnet import RFNet
from rfft.types import Batch
from rfft.utils.log import warn

Network = TypeVar("Network", Judge, Probe)


@dataclass(frozen=True)
class Networks:
    """What measures pictures; None or empty where a config names none."""

    rfnet: RFNetWithMaps | None
    monitor: RFNetWithMaps | None
    judge: Judge | None
    judge_tokenizer: Any  # its tokens are not RFNet's
    probe: Probe | None
    features: EfficientNetLite0
    scorers: Mapping[str, ScoreReward]


def load_networks(config: Config, rfnet: RFNetWithMaps | None, device: torch.device) -> Networks:
    """Load what the config's `evaluate` names, frozen, beside the RFNet that is there already."""
    settings = config.evaluate
    if rfnet is None:
        warn("there is no RFNet here: its available rate, attempts and success are left out")
    # channels_last: 40 % less time on a CPU, the same numbers
    features = load_efficientnet_lite0().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Networks(
        rfnet,
        load_monitor(config, rfnet, device),
        _load(Judge, settings.judge, device),
        None if settings.judge is None else build.load_tokenizer(settings.judge),
        _load(Probe, settings.probe, device),
        features,
        load_scorers(config, device),
    )


def load_monitor(config: Config, rfnet: RFNetWithMaps | None, device: torch.device) -> RFNetWithMaps | None:
    """Load evaluate.monitor, frozen; it sees the maps of the networks that `rfnet` has already."""
    name = config.evaluate.monitor
    if name is None:
        return None
    if rfnet is None:
        return build.load_rfnet(config.reward, name, device)
    model = RFNet.from_pretrained(name).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RFNetWithMaps(model, rfnet.depth, rfnet.saliency, build.caption_tokenizer(name))


def load_scorers(config: Config, device: torch.device | str) -> dict[str, ScoreReward]:
    """What scores pictures by their prompts in an evaluation, by the name of its figure; frozen."""
    settings, scorers = config.evaluate, dict[str, ScoreReward]()
    if settings.clip is not None:
        scorers["clip_score"] = TextMatch(settings.clip)
    if settings.pickscore is not None:
        scorers["pickscore"] = load_pickscore(settings.pickscore)
    if settings.aesthetic is not None:
        scorers["aesthetic"] = load_aesthetic(model=settings.aesthetic)
    return {name: scorer.requires_grad_(False).eval().to(device) for name, scorer in scorers.items()}


def _load(kind: type[Network], name: str | None, device: torch.device) -> Network | None:
    return None if name is None else kind.from_pretrained(name).requires_grad_(False).to(device)


class Verdicts:
    """RFNet's, the monitor's and the judge's logits for pictures, where a config has these networks."""

    def __init__(self, networks: Networks) -> None:
        self.rfnets = {"rfnet": networks.rfnet, "monitor": networks.monitor}
        self.judge, self.tokenizer = networks.judge, networks.judge_tokenizer

    def __call__(self, images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return each network's logits [B,K] on the CPU; see reward_logits."""
        logits: dict[str, Tensor] = {}
        for name, network in self.rfnets.items():
            if network is not None:
                logits[name] = reward_logits(partial(network, batch=batch), images).cpu()
        if self.judge is not None:
            found = self.tokenizer(batch.captions, padding=True, truncation=True, return_tensors="pt")
            tokens = found.input_ids.to(images.device), found.attention_mask.to(images.device)
            judge = self.judge
            logits["judge"] = reward_logits(lambda x: judge(x, batch.product, *tokens), images).cpu()
        return logits
