"""What the name of an objective stands for: settings between the schema's defaults and the config's."""

from __future__ import annotations

from typing import Any

RENAMED = {"x0_hat": "rfft", "draft": "draft-k"}  # objective.use of earlier configs


def preset(use: str, steps: int) -> dict[str, Any]:
    """Return the settings of a named objective for a sampler of so many steps; {} for one of one's own.

    `rfft` is the schema's defaults, the paper's (arXiv 2408.00418). The others have their authors' settings:
    the numbers of the FlowBP family are those of its published code for SD 3.5 (arXiv 2606.11075).
    """
    finished = {"sees": "finished"}

    def anywhere(count: int, bias: float = 0.0) -> dict[str, Any]:
        return {"draw": "random", "bias": bias, "grad_steps": min(count, steps), "last": steps}

    plain = {"regularizer": "none"}
    presets: dict[str, dict[str, Any]] = {
        "refl": {"objective": {"guidance_scale": 1.0, **plain}},
        "draft-k": {
            "rollout": {"draw": "last"},
            "objective": {**plain, "options": {**finished, "alpha": 1.0}},
        },
        "draft-lv": {
            "rollout": {"draw": "last"},
            "objective": {**plain, "options": {**finished, "noised": 2}},
        },
        "drtune": {"objective": {"options": finished}},
        "flowbp-sparse": {
            "rollout": anywhere(4, bias=1.0),
            "objective": {"options": {**finished, "rescale": 0.5}},
        },
        "flowbp-bridge": {
            "rollout": anywhere(5, bias=4.0),
            "objective": {"options": {**finished, "alpha": 0.5, "coupled": "one"}},
        },
        "leapalign": {
            "rollout": anywhere(2),
            "objective": {"options": {**finished, "alpha": 0.3, "leap": 0.1}},
        },
        "ddpo": {
            "rollout": anywhere(4),
            "objective": {**plain, "options": {"group": 4, "clip": 1e-4, "most": 5.0}},
        },
        "nft": {
            "rollout": anywhere(4),
            "objective": {**plain, "options": {"group": 4, "mix": 1.0, "old": "policy"}},
        },
        "dpo": {
            "rollout": anywhere(4),
            "objective": {**plain, "options": {"group": 4, "strength": 2000.0, "masked": True}},
        },
    }
    return presets.get(RENAMED.get(use, use), {})
