"""RFNet for rf-tiny: learns the five labels on renders, VAE round trips and one-step x0_hat."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rfft.adworld.assets import RESIZED
from rfft.adworld.canvas import SIZE
from rfft.rewards.maps import MapNet
from rfft.rewards.rfnet import RFNet, RFNetConfig
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import FitConfig, PretrainRun, device, fit, on_device, start
from rfft.training.pretrain.verdicts import (
    COUNTS,
    REPORT,
    LabelledBatch,
    LogitsOf,
    VariantScenes,
    attribute_reader,
    mixture,
    named,
    scene_probabilities,
    scene_reports,
    tokenizer_for,
    verdict_loss,
    write_report,
)

BATCH, STEPS = 48, 4000
NAME = "rf-tiny-rfnet"
ABLATION = "ablation.json"  # metrics of networks that went without an input
CONTROL = "none"  # the ablation's other arm: as many further steps with every input
Reports = dict[str, dict]
PLACES = {
    "o": (1,),
    "g": (0,),
    "d": (2,),
    "s": (3,),
    "c": (4, 5),
}  # of the modalities among RFNet's arguments
SCENES = COUNTS | {"x0_hat": 20_000}
SHARES = (0.35, 0.15, 0.5)  # of the batches: most are of what it will be asked about
ENCODER = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 2, 2], "layer_type": "basic"}


def train(run: PretrainRun) -> None:
    """Train RFNet, and report on validation scenes; `rfft adworld assess` adds the test scenes.

    With `run.drop` (some of o, g, d, s, c, or none) it is an ablation, of which only metrics are kept: those
    on the test scenes, as they choose nothing.
    """
    run.builds_on("base", "depth", "saliency")
    out, name = run.out, NAME + "".join(f"-no-{m}" for m in run.drop)
    tokenizer = tokenizer_for(out, NAME)
    parts = [VariantScenes((RESIZED, SCENES[variant], 1), variant, out, tokenizer) for variant in VARIANTS]
    inputs = run.compiled(inputs_with_maps(out))
    maps = {"depth": "rf-tiny-depth", "saliency": "rf-tiny-saliency"}
    shape = RFNetConfig.tiny(len(tokenizer), image_size=128, image_encoder=ENCODER, picture_size=SIZE, **maps)
    model = start(RFNet, out / NAME, shape)
    if run.drop:
        model = without(model, tuple(m for m in run.drop if m != CONTROL))
    read = attribute_reader(2 * model.config.width)
    features_of = run.compiled(partial(features, model))
    draw = mixture(parts, BATCH, SHARES)

    def loss_fn(step: int, rng: np.random.Generator) -> Tensor:
        batch = draw(rng)
        with torch.autocast(device().type, torch.bfloat16):
            verdict, product = features_of(*inputs(batch))
            return verdict_loss(model.head(verdict), read(torch.cat([verdict, product], dim=1)), batch)

    nets = nn.ModuleDict({"rfnet": model, "read": read})
    fit(nets, loss_fn, FitConfig(lr=1e-3, weight_decay=0.02, ema=0.998), run, name)
    split = "test" if run.drop else "val"
    reports = scene_reports(scene_probabilities(reader(model, out), out, NAME, split), split)
    if run.drop:
        add_ablation(out / NAME / ABLATION, "".join(run.drop), run.steps, reports)
        return
    copy.deepcopy(model).half().save_pretrained(out / NAME)
    tokenizer.save_pretrained(out / NAME)
    write_report(out / NAME / REPORT, named(reports, split))


def without(model: RFNet, drop: tuple[str, ...]) -> RFNet:
    """Return a network with the same weights, less those of dropped inputs, which it learns to do without."""
    ablated = RFNet(replace(model.config, drop=list(drop)))
    weights = model.state_dict()
    ablated.load_state_dict({name: weights[name] for name in ablated.state_dict()})
    return on_device(ablated).train()


def add_ablation(path: Path, dropped: str, steps: int, reports: Reports) -> None:
    """Write macro F1 and AP(available) for each variant beside those of the other ablations."""
    found = json.loads(path.read_text()) if path.exists() else {}
    metrics = {
        variant: {"macro_f1": values["macro_f1"], "ap": values["classes"]["available"]["ap"]}
        for variant, values in reports.items()
    }
    path.write_text(json.dumps(found | {dropped: {"steps": steps} | metrics}, indent=1))


def features(model: RFNet, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the head classifies and the mean of e_f, [B,D] each.

    The reader sees e_f as well: the caption's way to the verdict is so long that it was never learned.
    """
    encoded = model.encode(*inputs)
    verdict = model.fuse(*encoded)
    return verdict, encoded[0].get("o", verdict[:, None]).mean(dim=1)


def inputs_with_maps(out: Path) -> Callable[[LabelledBatch], tuple[Tensor, ...]]:
    """Return a function that gives RFNet's arguments for a batch, with the maps of the networks in `out`."""
    maps = [
        MapNet.from_pretrained(out / f"rf-tiny-{kind}").to(device()).requires_grad_(False)
        for kind in ("depth", "saliency")
    ]

    def inputs(batch: LabelledBatch) -> tuple[Tensor, ...]:
        with torch.no_grad(), torch.autocast(device().type, torch.bfloat16):
            depth, saliency = (net(batch.image) for net in maps)
        return batch.image, batch.product, depth, saliency, batch.caption_ids, batch.caption_mask

    return inputs


def reader(model: RFNet, out: Path, mixed_up: str | None = None) -> LogitsOf:
    """Return a function that gives RFNet's logits [B,5] for a batch.

    `mixed_up` names a modality of which every scene gets its neighbour's.
    """
    inputs = inputs_with_maps(out)
    places = PLACES[mixed_up] if mixed_up else ()

    def logits_of(batch: LabelledBatch) -> Tensor:
        given = [x.roll(1, 0) if i in places else x for i, x in enumerate(inputs(batch))]
        with torch.autocast(device().type, torch.bfloat16):
            return model(*given)

    return logits_of


def dependence(model: RFNet, out: Path) -> dict[str, dict[str, float]]:
    """Return macro F1 on the test scenes, for each variant, when one modality is another scene's."""
    found = {}
    for modality in PLACES:
        probabilities = scene_probabilities(reader(model, out, modality), out, NAME, "test")
        reports = scene_reports(probabilities, "test")
        found[modality] = {variant: report["macro_f1"] for variant, report in reports.items()}
    return found
