"""RFNet and judge on the test split: their figures with the generator as it is, and how far they agree."""

from pathlib import Path

import numpy as np

from rfft.adworld.pretrain import judge, rfnet
from rfft.adworld.pretrain.degraded import VARIANTS
from rfft.adworld.pretrain.fit import device
from rfft.adworld.pretrain.verdicts import (
    REPORT,
    TEST,
    test_probabilities,
    test_reports,
    write_report,
)
from rfft.adworld.scenes import load_scenes
from rfft.metrics.classification import agreement
from rfft.models.judge import Judge
from rfft.models.rfnet import RFNet
from rfft.types import LABELS


def assess(out: Path) -> None:
    """Write report.json of both networks anew; the judge's also says how far it agrees with RFNet."""
    folders = {"rfnet": out / "rf-tiny-rfnet", "judge": out / "rf-tiny-judge"}
    readers = {
        "rfnet": rfnet.reader(RFNet.from_pretrained(folders["rfnet"]).to(device()).eval(), out),
        "judge": judge.reader(Judge.from_pretrained(folders["judge"]).to(device()).eval()),
    }
    reports = {name: test_reports(reader, out, folders[name].name) for name, reader in readers.items()}
    labels = np.array(load_scenes(*TEST).label)
    for variant in VARIANTS:
        verdicts = {
            name: test_probabilities(reader, variant, out, folders[name].name).argmax(1)
            for name, reader in readers.items()
        }
        pairs = {"rfnet": verdicts["rfnet"], "labels": labels}
        for other, theirs in pairs.items():
            share, kappa = agreement(verdicts["judge"], theirs, len(LABELS))
            reports["judge"][variant] |= {f"agrees_with_{other}": share, f"kappa_with_{other}": kappa}
    for name, folder in folders.items():
        write_report(folder / REPORT, reports[name])
