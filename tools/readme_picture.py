#!/usr/bin/env python3
"""The README's picture: pairs of a run's report that both networks call fixed, base above tuned.

python tools/readme_picture.py runs/tiny docs/before_after.jpg: the first pair of each of the first products.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from rfft.evaluation import store
from rfft.evaluation.verdicts import verdict_name
from rfft.metrics.verdict import AVAILABLE
from rfft.utils import contact_sheet

SHOWN, ZOOM = 6, 3


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    cells = store.read_json(run / store.EVALUATION)["cells"]
    said = {state: store.verdicts(run, state) for state in store.STATES}
    fixed = [
        all(said["base"][n][i] != AVAILABLE and said["tuned"][n][i] == AVAILABLE for n in ("rfnet", "judge"))
        for i in range(len(cells))
    ]
    first: dict[str, int] = {}
    for i, cell in enumerate(cells):
        if fixed[i]:
            first.setdefault(cell["product"], i)
    picks = list(first.values())[:SHOWN]
    rows = {}
    for state in store.STATES:
        verdicts = said[state]["rfnet"][picks]
        names = [verdict_name(int(verdict), store.outputs(run, state, "rfnet")) for verdict in verdicts]
        sheets = store.pictures(run, state)
        pictures = torch.stack([sheets[i] for i in picks])
        large = pictures.repeat_interleave(ZOOM, dim=2).repeat_interleave(ZOOM, dim=3)
        rows[state] = contact_sheet.Row(large, verdicts == AVAILABLE, names)
    Image.fromarray(contact_sheet.before_after(rows, SHOWN)).save(out, quality=90)


if __name__ == "__main__":
    main()
