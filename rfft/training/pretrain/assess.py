"""RFNet, judge and probe assessed with the generator as it is, and how far the first two agree.

Every metric is there twice: on validation scenes, by which settings and architectures are chosen, and on test
scenes, which are for publishing alone.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rfft.metrics.classification import agreement
from rfft.rewards.probe import Probe
from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain import judge, probe, rfnet
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import console, device
from rfft.training.pretrain.networks import load_networks
from rfft.training.pretrain.stress import stress
from rfft.training.pretrain.verdicts import (
    DEPENDENCE,
    REPORT,
    LogitsOf,
    named,
    scene_labels,
    scene_probabilities,
    scene_reports,
    write_json,
    write_report,
)
from rfft.types import LABELS

STRESS = "stress.json"  # beside the weights
USES = {
    "val": "validation scenes, for choosing",
    "test": "test scenes, for publishing: nothing is chosen by them",
}


def assess(out: Path) -> None:
    """Write the networks' report.json anew (the judge's with its agreement), and RFNet's dependence.json.

    `out` holds rf-tiny and the networks' folders.
    """

    networks = load_networks(out)
    readers = {name: network.reader for name, network in networks.items()}
    reports: dict[str, dict[str, Any]] = {name: {} for name in readers}
    for split, use in USES.items():
        console.print(f"{split}: {use}")
        for name, found in _assess_split(readers, out, split).items():
            reports[name] |= named(found, split)
    reports[probe.NAME] = probe.accuracies(Probe.from_pretrained(out / probe.NAME).to(device()).eval(), out)
    for name, report in reports.items():
        write_report(out / name / REPORT, report)
    write_report(out / rfnet.NAME / DEPENDENCE, rfnet.dependence(networks[rfnet.NAME].model, out))


def _assess_split(readers: Mapping[str, LogitsOf], out: Path, split: str) -> dict[str, dict[str, dict]]:
    """Return the reports of RFNet and judge for each variant of a split's scenes."""
    found = {name: scene_probabilities(reader, out, name, split) for name, reader in readers.items()}
    reports = {name: scene_reports(probabilities, split) for name, probabilities in found.items()}
    means = {name: (found[rfnet.NAME][name] + found[judge.NAME][name]) / 2 for name in VARIANTS}
    together = scene_reports(means, split)  # two networks: what is wrong here is hard to see
    for variant, report in reports[judge.NAME].items():
        ours, theirs = (found[name][variant] for name in (judge.NAME, rfnet.NAME))
        report |= _agreement(ours, {"rfnet": theirs.argmax(1), "labels": scene_labels(split)})
        report["macro_f1_with_rfnet"] = together[variant]["macro_f1"]
    return reports


def _agreement(probabilities: NDArray[np.floating], others: Mapping[str, NDArray]) -> dict[str, float]:
    """Return how often the judge's probabilities [N,K] choose what others do [N], and Cohen's kappa."""
    found: dict[str, float] = {}
    for other, theirs in others.items():
        share, kappa = agreement(probabilities.argmax(1), theirs, len(LABELS))
        found |= {f"agrees_with_{other}": share, f"kappa_with_{other}": kappa}
    return found


def assess_stress(out: Path) -> None:
    """Write RFNet's and the judge's stress.json: what changes their verdicts though it should not."""
    networks = load_networks(out)
    for name, network in networks.items():
        others = {other: networks[other] for other in networks if other != name}
        write_json(out / name / STRESS, stress(network, others))


def assess_ablation(out: Path, runs: Sequence[Path]) -> None:
    """Write the rows of RFNets that go without an input into ablation.json beside RFNet's weights.

    `runs`: folders of `rfft rfnet train`; one that goes without nothing is the row that others compare with.
    """
    for run in runs:
        model = RFNet.from_pretrained(run / "rfnet").to(device())
        found = scene_probabilities(rfnet.reader(model, out), out, rfnet.NAME, "test")
        steps = json.loads((run / "summary.json").read_text())["steps"]
        dropped = "".join(model.config.drop) or rfnet.CONTROL
        rfnet.add_ablation(out / rfnet.NAME / rfnet.ABLATION, dropped, steps, scene_reports(found, "test"))
