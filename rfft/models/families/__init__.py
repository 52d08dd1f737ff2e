"""Families of bases: a file says how one is loaded, encodes text, lays out latents, is called, exported."""

# In the order in which they are asked whether a base is theirs.
FAMILIES = {
    "sdxl": "rfft.models.families.sdxl:StableDiffusionXL",
    "sd": "rfft.models.families.sd:StableDiffusion",
}
