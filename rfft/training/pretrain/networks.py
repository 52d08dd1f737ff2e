"""RFNet and judge as they are asked about scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfft.models.pretrained import PretrainedModule
from rfft.rewards.judge import Judge
from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain import judge, rfnet
from rfft.training.pretrain.fit import device
from rfft.training.pretrain.verdicts import LogitsOf, Source, VariantScenes, tokenizer_for


@dataclass(frozen=True)
class Network:
    """A network that judges scenes, with the folder it lies in, beside the generator's."""

    name: str
    model: Any
    reader: LogitsOf  # gives logits [B,5] for a batch, differentiable by its pictures
    out: Path

    def scenes(self, source: Source, variant: str = "render") -> VariantScenes:
        """Return scenes in one variant, with captions as this network reads them."""
        return VariantScenes(source, variant, self.out / "rf-tiny", tokenizer_for(self.out, self.name))


def load_networks(out: Path) -> dict[str, Network]:
    """Return RFNet and judge of the folder `out` by their names, frozen."""

    def loaded(kind: type[PretrainedModule], name: str) -> Any:
        return kind.from_pretrained(out / name).to(device()).requires_grad_(False)

    reward, opponent = loaded(RFNet, rfnet.NAME), loaded(Judge, judge.NAME)
    return {
        rfnet.NAME: Network(rfnet.NAME, reward, rfnet.reader(reward, out), out),
        judge.NAME: Network(judge.NAME, opponent, judge.reader(opponent), out),
    }
