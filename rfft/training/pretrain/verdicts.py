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
from torch import Tensor
from transformers import CLIPTokenizer

from rfft.adworld.grammar import ROUND_CM, round_cm, stated_cm
from rfft.adworld.scenes import ATTRIBUTES, IGNORED, Scenes, load_scenes
from rfft.metrics.classification import classification_report
from rfft.training.pretrain.augment import augment, strange_names
from rfft.training.pretrain.degraded import VARIANTS, load_variant
from rfft.training.pretrain.fit import console, device
from rfft.types import LABELS

CAPTION_LENGTH = 24
COUNTS = {"render": 30_000, "vae": 5_000, "x0_hat": 5_000}  # scenes to train on
ATTRIBUTE_CLASSES = [*map(len, ATTRIBUTES.values()), len(ROUND_CM), len(ROUND_CM)]
REGIONS = {"prop": 80.0, "grown part": 255.0, "clutter": 130.0}  # and their saliency in AdWorld's maps
EVENLY = (1 / 3, 1 / 3, 1 / 3)  # shares of the variants
REPORT = "report.json"  # metrics on both splits, beside the weights they belong to
DEPENDENCE = "dependence.json"  # RFNet's macro F1 when an input is another scene's


@dataclass
class LabelledBatch:
    """Scenes with all that a network may see or say of them.

    They are image [B,3,64,64], product [B,4,64,64], caption [B,24], label [B] and attributes [B,6]: the class
    numbers of ATTRIBUTES, then of the centimetres that the caption states, and of those of what stands beside
    the product; IGNORED where there is none. sizes [B,2] are these two in centimetres, 0 where there is none.
    regions [B,3,64,64] is 1 where REGIONS are.
    """

    image: Tensor
    product: Tensor
    caption_ids: Tensor
    caption_mask: Tensor
    label: Tensor
    attributes: Tensor
    sizes: Tensor
    regions: Tensor


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
        classes = ROUND_CM.tolist()
        stated = [classes.index(stated_cm(caption)) for caption in self.scenes.captions]
        beside = [classes.index(round_cm(cm)) if cm else IGNORED for cm in self.scenes.prop_cm.tolist()]
        self.attributes = np.column_stack([self.scenes.attributes, stated, beside])
        self.sizes = np.column_stack([ROUND_CM[stated], self.scenes.prop_cm]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, index: NDArray[np.int64], augmentation: Augmentation | None = None) -> LabelledBatch:
        """Return the scenes `index`.

        `augmentation` changes picture and product; with it the product's name gets strange words, too.
        """
        image = torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float().div(255)
        product = torch.cat([self.scenes.pixels(name, index) for name in ("product", "saliency")], dim=1)
        ids = self.ids[index]
        if augmentation is not None:
            image, product = augmentation(image, product)
            ids = strange_names(ids, self.comma, self.vocab_size)
        labels = torch.from_numpy(self.scenes.label[index])
        attributes = torch.from_numpy(self.attributes[index])
        sizes = torch.from_numpy(self.sizes[index])
        product, saliency = product[:, :4], product[:, 4:]
        regions = find_regions(saliency, product)
        fields = (image, product, ids, self.mask[index], labels, attributes, sizes, regions)
        return LabelledBatch(*(tensor.to(device()) for tensor in fields))


def find_regions(saliency: Tensor, product: Tensor) -> Tensor:
    """Return where REGIONS are, [B,3,H,W] of 0 and 1: by the saliency [B,1,H,W] that AdWorld draws each with.

    None of them is seen where the product [B,4,H,W] is.
    """
    levels = saliency * 255
    found = torch.cat([(levels - level).abs() < 10 for level in REGIONS.values()], dim=1)
    return (found & (product[:, 3:4] == 0)).float()


def region_loss(read: Tensor, regions: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of the share of each cell that is a region.

    read [B,3,h,w] are logits, regions [B,3,H,W] in [0,1].
    """
    height, width = read.shape[-2:]
    share = F.adaptive_avg_pool2d(regions, (height, width))
    return F.binary_cross_entropy_with_logits(read.float(), share)


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


def perturbed(image: Tensor, label: Tensor, logits_of: Callable[[Tensor], Tensor], size: float) -> Tensor:
    """Return pictures [B,3,H,W] of which the first half is moved towards another verdict than `label` [B].

    One step of the fast gradient sign method from a random start (arXiv 2001.03994), of at most `size` a
    pixel value in [0, 1], and of any smaller size by chance: what a generator's gradient would find first.
    `logits_of` gives the verdict on pictures.
    """
    half = image[: len(image) // 2]
    sizes = size * torch.rand(len(half), 1, 1, 1, device=image.device)
    start = half + sizes * (2 * torch.rand_like(half) - 1)
    with torch.enable_grad():
        moved = start.detach().requires_grad_()
        loss = F.cross_entropy(logits_of(moved).float(), label[: len(half)], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
    found = (start + 1.25 * sizes * gradient.sign() - half).clamp(-sizes, sizes)
    return torch.cat([(half + found).clamp(0, 1), image[len(half) :]])


def attribute_loss(logits: Sequence[Tensor], attributes: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of the first attributes, as many as there are logits [B,K].

    An attribute that a scene has not (IGNORED) counts as 0.
    """
    losses = [
        F.cross_entropy(part.float(), attributes[:, i], reduction="none").mean()
        for i, part in enumerate(logits)
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def logits_on(
    reader: LogitsOf, scenes: VariantScenes, change: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the logits [N,K] of all scenes, on the CPU; `change` changes their pictures [B,3,H,W] first."""
    found = []
    for index in np.array_split(np.arange(len(scenes)), max(1, len(scenes) // 100)):
        batch = scenes.batch(index)
        if change is not None:
            batch.image = change(batch.image)
        found.append(reader(batch).float().cpu())
    return torch.cat(found)


def scene_probabilities(
    logits_of: LogitsOf, folder: Path, name: str, split: str
) -> dict[str, NDArray[np.float32]]:
    """Return what network `name` says of a split's scenes, class probabilities [N,K] for each variant."""
    found = {}
    for variant in VARIANTS:
        data = VariantScenes(ASSESSED[split], variant, folder / "rf-tiny", tokenizer_for(folder, name))
        found[variant] = logits_on(logits_of, data).softmax(-1).numpy()
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


def write_json(path: Path, values: dict) -> None:
    """Write values as JSON; raises ValueError where one is not finite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, default=float, allow_nan=False))


def write_report(path: Path, report: dict) -> None:
    """Write a report as JSON, and show its scalars."""
    write_json(path, report)
    for key, values in report.items():
        console.print(path.parent.name, key, {k: v for k, v in values.items() if isinstance(v, float)})
