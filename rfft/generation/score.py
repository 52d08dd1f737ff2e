"""RFNet's verdicts on pictures, whoever painted them: rfft.score() in Python, `rfft score` on a terminal.

Shapes: B pictures at a time, S the side to which they are brought.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from rfft.build import caption_tokenizer
from rfft.data.samples import Skipped
from rfft.errors import UserError, require
from rfft.generation.sample import reward_logits
from rfft.generation.score_inputs import Picture, Question, find_questions, load_pair
from rfft.metrics.verdict import Verdict
from rfft.metrics.wilson import shown_share
from rfft.models.pretrained import find_folder, read_config
from rfft.rewards.availability import RFNetWithMaps
from rfft.rewards.maps import load_depth, load_saliency
from rfft.rewards.rfnet import RFNet
from rfft.types import label_names
from rfft.utils.atomic_io import new_file, refuse_existing
from rfft.utils.log import messages, warn, write_atomically

RFNET, BATCH_SIZE = "rf-tiny-rfnet", 16


def score(
    pictures: Sequence[Picture],
    products: Sequence[Picture],
    captions: Sequence[str],
    rfnet: str = RFNET,
    depth: str | None = None,
    saliency: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[Verdict]:
    """Return RFNet's verdict on each picture: its label, each class's probability, and if it is accepted.

    `pictures` and `products` are paths, PIL pictures, or tensors [3,H,W] and [4,H,W] in [0,1]; a product is
    RGBA, as it lies in the picture. `rfnet`, `depth` and `saliency` are embedded names, folders or hub ids;
    the last two are by default the networks whose maps RFNet was trained on. Raises UserError for what cannot
    be read.
    """
    given = {"pictures": pictures, "products": products, "captions": captions}
    for name, value in given.items():
        require(not isinstance(value, (str, Path, Image.Image)), f"{name} must be a list, not a single one")
    counts = {name: len(value) for name, value in given.items()}
    require(len(set(counts.values())) == 1, f"pictures, products and captions are not as many: {counts}")
    scorer, verdicts = Scorer(rfnet, depth, saliency), []
    for first in range(0, len(pictures), batch_size):
        part = slice(first, first + batch_size)
        pairs = [scorer.load(*pair) for pair in zip(pictures[part], products[part], strict=True)]
        verdicts += scorer(pairs, captions[part])
    return verdicts


class Scorer:
    """RFNet with the networks that make its maps, on the accelerator if there is one."""

    def __init__(self, rfnet: str = RFNET, depth: str | None = None, saliency: str | None = None) -> None:
        """Load the networks; those for depth and saliency are RFNet's own unless they are named."""
        config = read_config(RFNet, find_folder(rfnet))
        named = {"depth": depth or config.depth, "saliency": saliency or config.saliency}
        for kind, network in named.items():
            require(
                network, f"{rfnet} does not say which network made its {kind} maps: name it with --{kind}"
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        networks = load_depth(str(named["depth"])), load_saliency(str(named["saliency"]))
        network = RFNetWithMaps(RFNet.from_pretrained(rfnet), *networks, caption_tokenizer(rfnet))
        self.network = network.to(self.device)
        self.size = config.picture_size or config.image_size
        self.labels = label_names(config.num_labels)

    def load(self, picture: Picture, product: Picture) -> tuple[Tensor, Tensor]:
        """Read a picture [3,S,S] and its product [4,S,S] at the size that RFNet was trained on."""
        return load_pair(picture, product, self.size)

    @torch.no_grad()
    def __call__(self, pairs: Sequence[tuple[Tensor, Tensor]], captions: Sequence[str]) -> list[Verdict]:
        """Return the verdicts on B loaded pairs and their captions."""
        images, products = (torch.stack(part).to(self.device) for part in zip(*pairs, strict=True))
        logits = reward_logits(lambda x: self.network.logits(x, products, list(captions)), images)
        return [Verdict.of(row) for row in logits.softmax(-1).cpu()]


def score_files(
    pictures: Sequence[Path],
    products: Path,
    out: Path,
    scorer: Scorer,
    batch_size: int = BATCH_SIZE,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Write the verdicts on pictures on disk to `out`, a CSV file, all or nothing; see find_questions.

    Only `batch_size` pictures are in memory at a time. A picture that cannot be used is an error, or with
    on_error="skip" left out and listed beside `out` as NAME.skipped.jsonl; raises UserError if none is left,
    or if no verdict is finite.
    """
    refuse_existing(out, "name a new file with --out")
    questions = find_questions(pictures, products)
    if on_error == "stop":  # now, and not after hours of judging others
        problem = next((question.problem for question in questions if question.problem), None)
        require(problem is None, problem or "")
    skipped: list[Skipped] = []
    leave_out = skipped if on_error == "skip" else None
    accepted = finite = count = 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_file(out) as file:
        file.write(line(["picture", "label", "accepted", *scorer.labels]))
        for question, verdict in _verdicts(scorer, questions, batch_size, leave_out):
            file.write(line(_row(question, verdict)))
            accepted, finite, count = accepted + verdict.accepted, finite + verdict.is_finite, count + 1
        why = skipped[0].reason if skipped else ""
        require(count, f"none of {len(questions)} pictures can be used; the first: {why}")
        require(finite, f"none of {count} verdicts is finite: check the weights of RFNet and its networks")
    if skipped:
        listed = out.with_name(f"{out.stem}.skipped.jsonl")
        rows = [{"id": found.id, "reason": found.reason} for found in skipped]
        write_atomically(listed, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        warn(f"pictures left out: {len(skipped)}, listed in {listed}; first: {skipped[0].reason}")
    if finite < count:
        warn(f"verdicts that are not finite: {count - finite}, called not_finite in {out}")
    told = f"RFNet accepts {shown_share(accepted, count)}; written: {out}"
    messages().print(told, highlight=False, soft_wrap=True)


def _verdicts(
    scorer: Scorer, questions: Sequence[Question], batch_size: int, skipped: list[Skipped] | None
) -> Iterator[tuple[Question, Verdict]]:
    """Ask RFNet a batch at a time; `skipped` is given what cannot be read, None: that is an error."""
    starts = range(0, len(questions), batch_size)
    for first in track(starts, f"scoring {len(questions)} pictures", console=messages(), transient=True):
        usable, pairs = [], []
        for question in questions[first : first + batch_size]:
            try:
                require(question.problem is None, question.problem or "")
                pairs.append(scorer.load(question.picture, question.product))
                usable.append(question)
            except UserError as error:
                if skipped is None:
                    raise
                skipped.append(Skipped(str(question.picture), str(error)))
        if usable:
            yield from zip(usable, scorer(pairs, [question.caption for question in usable]), strict=True)


def _row(question: Question, verdict: Verdict) -> list[Any]:
    """Return a line of the CSV file; a verdict that is not finite has no probabilities."""
    values = [f"{p:.6f}" if verdict.is_finite else "" for p in verdict.probabilities.values()]
    return [question.picture, verdict.label, str(verdict.accepted).lower(), *values]


def line(values: Sequence[Any]) -> bytes:
    """Return a line of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()
