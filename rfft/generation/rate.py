"""Scores that people would give, for pictures on disk, and a filter by them: `rfft score --aesthetic`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track

from rfft.errors import UserError, require
from rfft.generation.score import line
from rfft.generation.score_inputs import find_files, pixels_of
from rfft.metrics.wilson import shown_share
from rfft.rewards.opinion import AestheticNetwork, expected_score
from rfft.utils.atomic_io import new_file, new_folder, refuse_existing
from rfft.utils.log import messages


def rate_files(
    pictures: Sequence[Path],
    network: str,
    out: Path,
    at_least: float = 4.0,
    keep: Path | None = None,
    batch_size: int = 16,
) -> None:
    """Write each picture's expected score, 1 to 5, and its defects' probabilities to `out`, a CSV file.

    `network`: what `rfft aesthetic train` exported; `at_least`: the score from which a picture is accepted;
    `keep`: a new folder for copies of the accepted ones. All or nothing. Raises UserError for a picture that
    cannot be read, and for a score that is not finite.
    """
    refuse_existing(out, "name a new file with --out")
    if keep is not None:
        refuse_existing(keep, "name a new folder with --keep")
    files = [file for path in pictures for file in find_files(path)]
    if keep is not None and len({file.name for file in files}) < len(files):
        raise UserError("--keep: two of the pictures have one name; filter their folders one by one")
    rater = Rater(network)
    accepted: list[Path] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(files), batch_size)
    with new_file(out) as file:
        file.write(line(["picture", "score", "accepted", *rater.network.config.defects]))
        for first in track(starts, f"scoring {len(files)} pictures", console=messages(), transient=True):
            part = files[first : first + batch_size]
            for path, (score, *defects) in zip(part, rater(part), strict=True):
                require(score == score, f"{path}: its score is not finite: check the weights of {network}")
                accepted += [path] if score >= at_least else []
                shown = str(score >= at_least).lower(), *(f"{p:.4f}" for p in defects)
                file.write(line([path, f"{score:.4f}", *shown]))
    if keep is not None:
        with new_folder(keep) as draft:
            for path in accepted:
                shutil.copyfile(path, draft / path.name)
    told = f"{at_least:g} at least: {shown_share(len(accepted), len(files))}; written: {out}"
    messages().print(told, highlight=False, soft_wrap=True)


class Rater:
    """An aesthetic network, on the accelerator if there is one."""

    def __init__(self, network: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = AestheticNetwork.from_pretrained(network).requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, files: Sequence[Path]) -> list[list[float]]:
        """Return of each picture its score, then the probability of each defect."""
        prepared = [self.network.prepare(pixels_of(file, "RGB").float()[None] / 255)[0] for file in files]
        scores, defects = self.network(torch.stack(prepared).to(self.device))
        return torch.cat([expected_score(scores)[:, None], defects.sigmoid()], dim=1).tolist()
