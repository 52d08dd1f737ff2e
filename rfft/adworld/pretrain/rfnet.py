"""RFNet for rf-tiny: learns the five labels on renders, VAE round trips and one-step x0_hat."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rfft.adworld.pretrain.degraded import VARIANTS
from rfft.adworld.pretrain.fit import FitConfig, Run, device, fit, start
from rfft.adworld.pretrain.verdicts import (
    COUNTS,
    REPORT,
    Labelled,
    LabelledBatch,
    LogitsOf,
    attribute_reader,
    mixture,
    test_probabilities,
    test_reports,
    tokenizer_for,
    verdict_loss,
    write_report,
)
from rfft.models.auxiliary import MapNet
from rfft.models.rfnet import RFNet, RFNetConfig

BATCH, STEPS = 48, 4000
NAME = "rf-tiny-rfnet"
SCENES = COUNTS | {"x0_hat": 10_000}  # more of what it will be asked about
ENCODER = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 2], "layer_type": "basic"}


def train(run: Run) -> None:
    """Train RFNet; with `run.drop` (some of o, g, d, s, c) an ablation, of which only the report is kept."""
    out, name = run.out, NAME + "".join(f"-no-{m}" for m in run.drop)
    tokenizer = tokenizer_for(out, name)
    parts = [Labelled(("train", SCENES[variant], 1), variant, out, tokenizer) for variant in VARIANTS]
    inputs = inputs_with_maps(out)
    config = RFNetConfig.tiny(len(tokenizer), image_size=96, image_encoder=ENCODER, drop=list(run.drop))
    model = start(RFNet, out / name, config)
    read = attribute_reader(config.width)
    features_of = run.compiled(model.features)
    draw = mixture(parts, BATCH)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        with torch.autocast(device().type, torch.bfloat16):
            features = features_of(*inputs(batch))
            return verdict_loss(model.head(features), read(features), batch)

    nets = nn.ModuleDict({"rfnet": model, "read": read})
    fit(nets, loss_fn, FitConfig(lr=1e-3, weight_decay=0.02, ema=0.998), run, name)
    if not run.drop:
        model.save_pretrained(out / name, half=True)
        tokenizer.save_pretrained(out / name)
    probabilities = test_probabilities(reader(model, out), out, name)
    write_report((run.state if run.drop else out) / name / REPORT, test_reports(probabilities))


def inputs_with_maps(out: Path) -> Callable[[LabelledBatch], tuple[Tensor, ...]]:
    """What RFNet takes, with the maps that the networks in `out` make."""
    maps = [
        MapNet.from_pretrained(out / f"rf-tiny-{kind}").to(device()).requires_grad_(False)
        for kind in ("depth", "saliency")
    ]

    def inputs(batch: LabelledBatch) -> tuple[Tensor, ...]:
        with torch.no_grad():
            depth, saliency = (net(batch.image) for net in maps)
        return batch.image, batch.product, depth, saliency, batch.caption_ids, batch.caption_mask

    return inputs


def reader(model: RFNet, out: Path) -> LogitsOf:
    """Logits [B, 5] of a batch."""
    inputs = inputs_with_maps(out)

    def logits_of(batch: LabelledBatch) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return model(*inputs(batch))

    return logits_of
