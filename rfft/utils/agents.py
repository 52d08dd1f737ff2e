"""Where the agent of a W&B sweep has started a command: it chooses settings, project and run id."""

from __future__ import annotations

import os
from collections.abc import Sequence


def in_wandb_sweep() -> bool:
    """Tell whether an agent of a W&B sweep has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def agents_run_name(name: str) -> str:
    """Return a name of its own for each of an agent's runs, which share a config; else the name as it is."""
    run_id = os.environ.get("WANDB_RUN_ID")
    return f"{name}-{run_id}" if in_wandb_sweep() and run_id else name


def agents_overrides(overrides: Sequence[str]) -> list[str]:
    """Return overrides with YAML's null where an agent has written Python's None."""
    if not in_wandb_sweep():
        return list(overrides)
    return [item.replace("=None", "=null") if item.endswith("=None") else item for item in overrides]
