"""Families of bases: a file says how one is loaded, encodes text, lays out latents, is called, exported."""

from rfft.models.families.base import Family
from rfft.models.families.flux import Flux
from rfft.models.families.flux_fill import FluxFill
from rfft.models.families.kolors import Kolors
from rfft.models.families.qwen_image import QwenImage
from rfft.models.families.sd import StableDiffusion
from rfft.models.families.sd3 import StableDiffusion3
from rfft.models.families.sdxl import StableDiffusionXL

# In the order in which they are asked whether a base is theirs.
KNOWN: dict[str, type[Family]] = {
    "flux": Flux,
    "flux_fill": FluxFill,
    "kolors": Kolors,
    "qwen_image": QwenImage,
    "sd3": StableDiffusion3,
    "sdxl": StableDiffusionXL,
    "sd": StableDiffusion,
}
