"""What goes along with RFNet's weights: the tokenizer and report of its folder, and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from rfft.errors import UserError
from rfft.rewards.rfnet_config import RFNetConfig
from rfft.types import label_names

REPORT = "report.json"  # classification reports by what was judged, beside the weights
EVALUATION = "evaluation.json"  # one report, in a run's folder: beside the folder of the weights
TOKENIZER = "tokenizer_config.json"  # every tokenizer has it
COMPANIONS = (
    *("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model"),
    REPORT,
)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer and report from one folder of an RFNet into another; into itself does nothing."""
    if source.resolve() == folder.resolve():
        return
    for pattern in COMPANIONS:
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def require_tokenizer(source: Path | None) -> None:
    """Raise UserError unless a network comes from a folder with the tokenizer for its captions."""
    if source is None or not (source / TOKENIZER).is_file():
        raise UserError(
            "this RFNet has no tokenizer beside it: save both into one folder, and push "
            "RFNet.from_pretrained(FOLDER)"
        )


def render_card(config: RFNetConfig, source: Path | None, name: str) -> str:
    """Return the model card of a network under the name that others load it by, in Markdown."""
    environment = Environment(  # noqa: S701  Markdown: escaping would garble it
        loader=PackageLoader("rfft"), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("rfnet_card.md.j2").render(
        labels=[label.replace("_", " ") for label in label_names(config.num_labels)],
        name=name,
        facts=_facts(config),
        reports=_reports(source) if source else {},
    )


def _facts(config: RFNetConfig) -> dict[str, Any]:
    """Return what a user of the network must know, by name."""
    text = config.text_encoder
    return {
        "pictures are brought to": f"{config.picture_size or config.image_size} px, square",
        "the network sees them at": f"{config.image_size} px",
        "depth by": config.depth or "a network that was not noted",
        "saliency by": config.saliency or "a network that was not noted",
        "image encoders": f"ResNet {config.image_encoder['depths']}, {config.image_encoder['hidden_sizes']}",
        "text encoder": f"{text['model_type']}, vocabulary of {text['vocab_size']} tokens",
        "width, heads": f"{config.width}, {config.heads}",
        "N1, N2, kernel of eq (3)": f"{config.n1}, {config.n2}, {config.ffm_kernel}",
        "left out": ", ".join(config.drop) or "nothing",
    }


def _reports(source: Path) -> dict[str, Any]:
    """Return the network's classification reports by what was judged."""
    if (file := source / REPORT).is_file():
        return {name.replace("/", ", "): report for name, report in _read(file).items()}
    if (file := source.parent / EVALUATION).is_file() and "classes" in (report := _read(file)):
        return {str(report.get("data", "evaluation")): report}
    return {}


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: broken JSON; remove it, or evaluate the network again") from error
