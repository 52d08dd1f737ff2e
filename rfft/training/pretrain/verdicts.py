"""What the trainings of RFNet, judge and probe share: mixed batches of scenes in all variants, and reports.

N scenes, K classes. Splits: "val" is for choosing (settings, architectures, how long to train), "test" is for
publishing, and nothing is chosen by it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from rfft.adworld.grammar import ROUND_CM, stated_cm
from rfft.adworld.scenes import ATTRIBUTES, Scenes, load_scenes
from rfft.metrics.classification import classification_report
from rfft.training.pretrain.augment import augment, strange_names
from rfft.training.pretrain.degraded import VARIANTS, load_variant
from rfft.training.pretrain.fit import console, device
from rfft.types import LABELS

CAPTION_LENGTH = 24
COUNTS = {"render": 30_000, "vae": 5_000, "x0_hat": 5_000}  # scenes to train on
ATTRIBUTE_CLASSES = [*map(len, ATTRIBUTES.values()), len(ROUND_CM)]
EVENLY = (1 / 3, 1 / 3, 1 / 3)  # shares of the variants
REPORT = "report.json"  # metrics on both splits, beside the weights they belong to
DEPENDENCE = "dependence.json"  # RFNet's macro F1 when an input is another scene's


@dataclass
class LabelledBatch:
    """Scenes with all that a network may see or say of them.

    They are image [B,3,64,64], product [B,4,64,64], caption [B,24], label [B] and attributes [B,5]: the class
    numbers of ATTRIBUTES, then of the centimetres that the caption states.
    """

    image: Tensor
    product: Tensor
    caption_ids: Tensor
    caption_mask: Tensor
    label: Tensor
    attributes: Tensor


Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
LogitsOf = Callable[[LabelledBatch], Tensor]
Source = tuple[str, int, int]  # split, count, seed
ASSESSED: dict[str, Source] = {"val": ("val", 800, 9), "test": ("test", 800, 9)}


def tokenizer_for(folder: Path, name: str) -> CLIPTokenizer:
    """Return the tokenizer of network `name` in `folder`, or for a new one the generator's."""
    own = folder / name
    known = (own / "tokenizer.json").exists()
    return CLIPTokenizer.from_pretrained(own if known else folder / "rf-tiny" / "tokenizer")


class VariantScenes:
    """The scenes of one split and seed in one variant."""

    def __init__(self, source: Source, variant: str, bundle: Path, tokenizer: CLIPTokenizer) -> None:
        """Load the scenes as the generator in the folder `bundle` shows them, or draw them.

        `tokenizer` is that of the network that reads the captions.
        """
        self.scenes: Scenes = load_scenes(*source)
        self.images = load_variant(*source, variant, bundle)
        self.ids, self.mask = tokenize(tokenizer, self.scenes.captions)
        self.comma, self.vocab_size = tokenizer.convert_tokens_to_ids(",</w>"), len(tokenizer)
        stated = [ROUND_CM.tolist().index(stated_cm(caption)) for caption in self.scenes.captions]
        self.attributes = np.column_stack([self.scenes.attributes, stated])

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, index: NDArray[np.int64], augmentation: Augmentation | None = None) -> LabelledBatch:
        """Return the scenes `index`.

        `augmentation` changes picture and product; with it the product's name gets strange words, too.
        """
        image = torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float().div(255)
        product = self.scenes.pixels("product", index)
        ids = self.ids[index]
        if augmentation is not None:
            image, product = augmentation(image, product)
            ids = strange_names(ids, self.comma, self.vocab_size)
        labels = torch.from_numpy(self.scenes.label[index])
        attributes = torch.from_numpy(self.attributes[index])
        fields = (image, product, ids, self.mask[index], labels, attributes)
        return LabelledBatch(*(tensor.to(device()) for tensor in fields))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask [N,24] of N captions."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=CAPTION_LENGTH, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids, encoded.attention_mask


def mixture(
    parts: list[VariantScenes],
    size: int,
    shares: Sequence[float],
    augmentation: Augmentation | None = augment,
) -> Callable[[np.random.Generator], LabelledBatch]:
    """Return a function that draws an augmented batch of one part, which is drawn by its share."""

    def draw(rng: np.random.Generator) -> LabelledBatch:
        part = parts[rng.choice(len(parts), p=shares)]
        return part.batch(rng.integers(len(part), size=size), augmentation)

    return draw


def attribute_reader(width: int) -> nn.Module:
    """Return a linear reader of a batch's attributes off a verdict's features; thrown away after training.

    To judge the product's size one must know what stands beside it and what the caption says of the product:
    learned far sooner when it is asked for.
    """
    return nn.Linear(width, sum(ATTRIBUTE_CLASSES)).to(device())


def attribute_loss(logits: Sequence[Tensor], attributes: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of the first attributes, as many as there are logits [B,K]."""
    losses = [F.cross_entropy(part.float(), attributes[:, i]) for i, part in enumerate(logits)]
    return torch.stack(losses).sum()


def verdict_loss(logits: Tensor, read: Tensor, batch: LabelledBatch) -> Tensor:
    """Return the cross-entropy of the label, and a tenth of that of what the reader read."""
    label = F.cross_entropy(logits.float(), batch.label, label_smoothing=0.02)
    return label + 0.1 * attribute_loss(read.split(ATTRIBUTE_CLASSES, dim=1), batch.attributes)


@torch.no_grad()
def scene_probabilities(
    logits_of: LogitsOf, folder: Path, name: str, split: str
) -> dict[str, NDArray[np.float32]]:
    """Return what network `name` says of a split's scenes, class probabilities [N,K] for each variant."""
    found = {}
    for variant in VARIANTS:
        data = VariantScenes(ASSESSED[split], variant, folder / "rf-tiny", tokenizer_for(folder, name))
        chunks = np.array_split(np.arange(len(data)), len(data) // 100)
        parts = [logits_of(data.batch(chunk)).float().softmax(-1).cpu() for chunk in chunks]
        found[variant] = torch.cat(parts).numpy()
    return found


def scene_reports(probabilities: Mapping[str, NDArray[np.floating]], split: str) -> dict[str, dict]:
    """Return the classification report of each variant's probabilities [N,K] on the scenes of a split."""
    labels = scene_labels(split)
    return {variant: classification_report(found, labels, LABELS) for variant, found in probabilities.items()}


def scene_labels(split: str) -> NDArray[np.int64]:
    """Return the labels [N] of the scenes of a split."""
    return np.array(load_scenes(*ASSESSED[split]).label)


def named(reports: Mapping[str, dict], split: str) -> dict[str, dict]:
    """Return reports under SPLIT/VARIANT, as they stand in report.json."""
    return {f"{split}/{variant}": report for variant, report in reports.items()}


def write_report(path: Path, report: dict) -> None:
    """Write a report as JSON, and show its scalars."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, default=float, allow_nan=False))
    for key, values in report.items():
        console.print(path.parent.name, key, {k: v for k, v in values.items() if isinstance(v, float)})
