"""RFNet, judge and probe on the test split with the generator as it is; how far the first two agree."""

from pathlib import Path
from typing import Any

import numpy as np

from rfft.adworld.scenes import load_scenes
from rfft.metrics.classification import agreement
from rfft.rewards.judge import Judge
from rfft.rewards.probe import Probe
from rfft.rewards.rfnet import RFNet
from rfft.training.pretrain import judge, probe, rfnet
from rfft.training.pretrain.degraded import VARIANTS
from rfft.training.pretrain.fit import device
from rfft.training.pretrain.verdicts import (
    DEPENDENCE,
    REPORT,
    TEST,
    test_probabilities,
    test_reports,
    write_report,
)
from rfft.types import LABELS


def assess(out: Path) -> None:
    """Write the networks' report.json anew (the judge's with its agreement), and RFNet's dependence.json."""

    def loaded(kind: Any, name: str) -> Any:
        return kind.from_pretrained(out / name).to(device()).eval()

    reward = loaded(RFNet, rfnet.NAME)
    readers = {
        rfnet.NAME: rfnet.reader(reward, out),
        judge.NAME: judge.reader(loaded(Judge, judge.NAME)),
    }
    found = {name: test_probabilities(reader, out, name) for name, reader in readers.items()}
    reports = {name: test_reports(probabilities) for name, probabilities in found.items()}
    means = {name: (found[rfnet.NAME][name] + found[judge.NAME][name]) / 2 for name in VARIANTS}
    together = test_reports(means)  # two networks that were trained apart: what is wrong here is hard to see
    labels = np.array(load_scenes(*TEST).label)
    for variant in VARIANTS:
        verdicts = {name: found[name][variant].argmax(1) for name in found}
        for other, theirs in {"rfnet": verdicts[rfnet.NAME], "labels": labels}.items():
            share, kappa = agreement(verdicts[judge.NAME], theirs, len(LABELS))
            reports[judge.NAME][variant] |= {f"agrees_with_{other}": share, f"kappa_with_{other}": kappa}
        reports[judge.NAME][variant]["macro_f1_with_rfnet"] = together[variant]["macro_f1"]
    reports[probe.NAME] = probe.accuracies(loaded(Probe, probe.NAME), out)
    for name, report in reports.items():
        write_report(out / name / REPORT, report)
    write_report(out / rfnet.NAME / DEPENDENCE, rfnet.dependence(reward, out))
