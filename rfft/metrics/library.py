"""torchmetrics, which only some metrics need."""

import importlib
from typing import Any

from rfft.errors import UserError


def torchmetrics(module: str) -> Any:
    """A module of the library, such as "functional.image", or what to install."""
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except ImportError:
        raise UserError("this figure needs the package torchmetrics: pip install 'rfft[metrics]'") from None
