"""Captions of products and prompts of scenes: a small grammar over surface, place, prop and light."""

import numpy as np

ROUND_CM = np.array([10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300])
SURFACE_WORDS = {
    "wood": ("a wooden floor", "oak planks", "a wooden table top"),
    "marble": ("white marble", "a marble slab", "polished marble"),
    "linen": ("a linen cloth", "beige linen", "a woven linen mat"),
    "grass": ("green grass", "a lawn", "fresh grass"),
    "sand": ("yellow sand", "fine sand", "a sandy ground"),
    "slate": ("dark slate", "a slate slab", "grey slate stone"),
}
PLACE_WORDS = {
    "forest": ("in a forest", "in the woods", "among trees"),
    "city": ("in a city", "before tall buildings", "on a downtown square"),
    "meadow": ("in a meadow", "under a wide blue sky", "in open fields"),
    "seaside": ("at the seaside", "by the sea", "on a quay at the water"),
    "night": ("at night", "under a night sky", "outdoors after dark"),
    "room": ("in a bright room", "in an apartment", "in a living room"),
    "hall": ("in a large hall", "in a lobby", "in a shopping mall"),
    "workshop": ("in a workshop", "in a factory hall", "among machines"),
    "studio": ("before a plain wall", "in a photo studio", "with a plain background"),
}
PROP_WORDS = {
    "fruit bowl": ("a bowl of fruit", "a fruit bowl"),
    "cactus": ("a potted cactus", "a small cactus"),
    "gift": ("a blue gift box", "a wrapped gift"),
    "teddy bear": ("a teddy bear", "a brown teddy"),
    "vase": ("a blue vase", "a tall blue vase"),
    "lamp": ("a table lamp", "a lamp"),
    "tulips": ("a bunch of tulips", "tulips in a vase"),
    "crate": ("a wooden crate", "a crate"),
    "cone": ("a traffic cone", "a red and white cone"),
    "barrel": ("a wooden barrel", "a barrel"),
    "palm": ("a potted palm", "a green palm plant"),
    "christmas tree": ("a christmas tree", "a decorated christmas tree"),
}
ANY_PLACE = ("before a wall", "before a backdrop")  # where no place of PLACE_WORDS is shown
LIGHT_WORDS = {
    "daylight": ("soft daylight", "even daylight"),
    "warm": ("warm evening light", "golden light"),
    "cool": ("cool morning light", "bluish light"),
    "dim": ("dim moody light", "low light"),
}


def round_cm(cm: float) -> int:
    """Return the nearest of the sizes that captions speak of, in centimetres."""
    return int(ROUND_CM[np.abs(np.log(ROUND_CM / cm)).argmin()])


def caption(name: str, height_cm: float) -> str:
    """Return the caption of a product: its name and about how tall it is."""
    return f"{name}, about {round_cm(height_cm)} cm tall"


def stated_cm(caption: str) -> int:
    """Return the centimetres that a caption speaks of."""
    return int(caption.rsplit(" cm", 1)[0].rsplit(" ", 1)[1])


def prompt(name: str, height_cm: float, attributes: dict[str, str], rng: np.random.Generator) -> str:
    """Return a prompt for a scene with these attributes, in words drawn from the grammar."""

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    product = f"a {name if rng.random() < 0.5 else 'product'} of about {round_cm(height_cm)} cm"
    surface = pick(SURFACE_WORDS[attributes["surface"]])
    place = pick(PLACE_WORDS.get(attributes["place"], ANY_PLACE))
    light, prop = pick(LIGHT_WORDS[attributes["light"]]), attributes["prop"]
    parts = [f"{product} on {surface} {place}"]
    if prop != "none":
        words = pick(PROP_WORDS.get(prop, (f"a {prop}",)))
        parts.append(f"{words} beside it" if rng.random() < 0.5 else f"next to {words}")
    parts.append(light)
    return ", ".join(parts)
