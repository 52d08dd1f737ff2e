"""The networks that score pictures. `from rfft.rewards import RFNet` loads torch only then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rfft.rewards.rfnet import RFNet

__all__ = ["RFNet"]


def __getattr__(name: str) -> Any:
    if name != "RFNet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rfft.rewards.rfnet import RFNet

    return RFNet
