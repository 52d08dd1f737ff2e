"""What the shipped configs of the newer bases cost, as a table for docs/bases.md.

python tools/base_costs.py [a.b=c ...]: counted from the bases' published config files (tests/published), with
RFNet and its maps as embedded; no weights are needed, and nothing is computed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from rfft.config.load import load_config
from rfft.models.load import load_skeleton
from rfft.training.costs import Costs, costs
from rfft.utils.estimate import weight_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import published  # noqa: E402

BASES = {
    "sd35_medium": "sd35_lora_cc",
    "sd35_large": "sd35_lora_cc",
    "kolors": "kolors_lora_cc",
    "flux": "flux_lora_cc",
    "qwen_image": "qwen_image_lora_cc",
}
MODES = ("denoiser_lora", "controlnet_lora", "controlnet")
OWN = (
    *("model.controlnet=null", "reward.rfnet=rf-tiny-rfnet", "reward.depth=rf-tiny-depth"),
    *("reward.saliency=rf-tiny-saliency", "evaluate.enabled=false"),
)
GIB, PROCESSES = 2**30, 8


def split_over_processes(found: Costs, split: int) -> float:
    """Bytes of a process under FSDP2: its share of `split` and of the optimizer, and the rest, unmerged."""
    lasting, passing = found.lasting, found.passing
    optimizer = lasting["gradients and optimizer"]
    shared = (split + optimizer) / PROCESSES
    return shared + lasting["weights"] - split + sum(passing.values()) - passing["rollout's merged weights"]


def main(overrides: list[str]) -> None:
    """Print the table, a base and mode a line."""
    print("| base | trained | parameters | PFLOP a step | GiB on one GPU | on each of 8, FSDP2 | start |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, config in BASES.items():
        with tempfile.TemporaryDirectory() as folder:
            published.write(name, Path(folder))
            for mode in MODES:
                own = [f"model.bundle={folder}", f"model.train=[{mode}]", *OWN, *overrides]
                loaded = load_config(config, own)
                found = costs(loaded)
                texts = 0 if torch.cuda.is_available() else found.lasting["text encoders"]
                bundle = load_skeleton(folder, getattr(torch, loaded.model.dtype))
                bundle.train([mode], loaded.model.lora.rank, loaded.model.lora.alpha, ["to_q"])
                copies = [part for part in (bundle.frozen_controlnet,) if part is not None]
                split = weight_bytes([bundle.unwrapped, *copies])
                trained = found.facts["trained"].split()[1]
                sizes = (found.together - texts, split_over_processes(found, split), found.start)
                shown = " | ".join(f"{size / GIB:.0f}" for size in sizes)
                print(f"| {name} | `{mode}` | {trained} | {found.flops / 1e15:.0f} | {shown} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
