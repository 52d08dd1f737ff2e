"""THE METHOD: one file for each way in which a verdict becomes a gradient; regularizers."""

_SURROGATE = "rfft.objectives.surrogate:Surrogate"  # one class; config/presets.py has their designs

OBJECTIVES = {
    "rfft": _SURROGATE,
    "refl": _SURROGATE,
    "draft-k": _SURROGATE,
    "draft-lv": _SURROGATE,
    "drtune": _SURROGATE,
    "flowbp-sparse": _SURROGATE,
    "flowbp-bridge": _SURROGATE,
    "leapalign": _SURROGATE,
    "ddpo": "rfft.objectives.ddpo:DDPO",
    "nft": "rfft.objectives.nft:DiffusionNFT",
    "dpo": "rfft.objectives.dpo:DiffusionDPO",
}
WITHOUT_GRADIENT = ("ddpo", "nft", "dpo")  # those that rewards of any kind will do for
