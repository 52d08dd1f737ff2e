"""RFNet for rf-tiny: learns the five labels on renders, VAE round trips and one-step x0_hat."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfft.adworld.pretrain.degraded import VARIANTS
from rfft.adworld.pretrain.fit import FitConfig, device, fit, start
from rfft.adworld.pretrain.verdicts import (
    REPORT,
    Labelled,
    LabelledBatch,
    mixture,
    test_reports,
    write_report,
)
from rfft.models.auxiliary import MapNet
from rfft.models.rfnet import RFNet, RFNetConfig

BATCH, STEPS = 48, 1200
COUNTS = {"render": 30_000, "vae": 10_000, "x0_hat": 5_000}
ENCODER = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 2], "layer_type": "basic"}


def train(out: Path, state: Path, steps: int = STEPS, drop: tuple[str, ...] = ()) -> None:
    """Train RFNet; with `drop` (some of o, g, d, s, c) an ablation, of which only the report is kept."""
    parts = [Labelled("train", COUNTS[variant], 1, variant, out) for variant in VARIANTS]
    maps = [
        MapNet.from_pretrained(out / f"rf-tiny-{kind}").to(device()).requires_grad_(False)
        for kind in ("depth", "saliency")
    ]
    tokenizer = parts[0].tokenizer
    config = RFNetConfig.tiny(len(tokenizer), image_size=96, image_encoder=ENCODER, drop=list(drop))
    name = "rf-tiny-rfnet" + "".join(f"-no-{m}" for m in drop)
    model = start(RFNet, out / name, config)
    draw = mixture(parts, BATCH)

    def logits_of(batch: LabelledBatch) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            with torch.no_grad():
                depth, saliency = (net(batch.image) for net in maps)
            return model(batch.image, batch.product, depth, saliency, batch.caption_ids, batch.caption_mask)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        return F.cross_entropy(logits_of(batch).float(), batch.label, label_smoothing=0.02)

    fit(model, loss_fn, FitConfig(steps=steps, lr=1e-3, weight_decay=0.02, ema=0.995), state / f"{name}.pt")
    if not drop:
        model.save_pretrained(out / name, half=True)
        tokenizer.save_pretrained(out / name)
    write_report((state if drop else out) / name / REPORT, test_reports(logits_of, out))
