"""What the memory recipes take, as a table for docs/launching.md.

python tools/recipe_costs.py [a.b=c ...]: counted from the bases' published config files (tests/published),
with RFNet and its maps as embedded, TAESD's own shape, and no networks of an evaluation; no weights are
needed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from diffusers import AutoencoderTiny

from rfft.config.load import load_config
from rfft.training.costs import costs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import published  # noqa: E402
from tools.base_costs import GIB, OWN  # noqa: E402

RECIPES = {
    "sd15_lora_cc": "sd15",
    "sd15_8gb": "sd15",
    "sdxl_lora_cc": "sdxl",
    "sdxl_24gb": "sdxl",
}


def main(overrides: list[str]) -> None:
    """Print the table, a config a line."""
    print("| config | weights | merged | activations | decoder, reward | together | start | TFLOP a step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, base in RECIPES.items():
        with tempfile.TemporaryDirectory() as folder:
            published.write(base, Path(folder))
            own = [f"model.bundle={folder}", *OWN, *overrides]
            if load_config(name).model.tiny_vae is not None:
                AutoencoderTiny().save_config(f"{folder}/tiny")
                own.append(f"model.tiny_vae={folder}/tiny")
            found = costs(load_config(name, own))
        apart = found.lasting["text encoders"]  # in the CPU's memory, where there is a GPU
        sizes = [
            found.lasting["weights"],
            *found.passing.values(),
            found.together - apart,
            found.start,
        ]
        shown = " | ".join(f"{size / GIB:.2f}" for size in sizes)
        print(f"| `{name}` | {shown} | {found.flops / 1e12:,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
