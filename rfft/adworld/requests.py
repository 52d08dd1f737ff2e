"""What an advertiser asks for in AdWorld: a product on its canvas and a prompt that could be met."""

from dataclasses import dataclass

import numpy as np

from rfft.adworld import assets, grammar
from rfft.adworld.assets import Image8
from rfft.adworld.scene import draw_attributes, place_icon

_SPLIT_KEY = {"train": 0, "val": 1, "test": 2}


@dataclass
class Request:
    """product [64, 64, 4] uint8, straight alpha; `attributes` is what the prompt asks for."""

    id: str
    icon: str  # name of the product's icon; the same one may come again in another placement
    product: Image8
    caption: str
    prompt: str
    attributes: dict[str, str]


def draw_requests(split: str, products: int, prompts_per_product: int, seed: int) -> list[Request]:
    """Requests for `products` products of a split; a product's prompts share its placement."""
    rng = np.random.default_rng([seed, _SPLIT_KEY[split], 418])
    icons = assets.products(split)
    order = [i for _ in range(-(-products // len(icons))) for i in rng.permutation(len(icons))][:products]
    requests = []
    for number, chosen in enumerate(order):
        icon = icons[chosen]
        cutout = place_icon(icon, rng)
        drawn_height = int((cutout[..., 3].max(axis=1) > 0).sum())
        for turn in range(prompts_per_product):
            attributes = draw_attributes(icon, drawn_height, rng)
            text = grammar.prompt(icon.name, icon.height_cm, attributes, rng)
            caption = grammar.caption(icon.name, icon.height_cm)
            name = f"{number:04d}-{icon.id}-{turn}"
            requests.append(Request(name, icon.id, cutout, caption, text, attributes))
    return requests
