"""torchmetrics, which only some metrics need."""

import importlib
from typing import Any

from rfft.errors import UserError


def torchmetrics(module: str) -> Any:
    """Return a module of torchmetrics, such as "functional.image".

    Raises UserError, which says what to install, without the library.
    """
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except ImportError:
        raise UserError("this figure needs the package torchmetrics: pip install 'rfft[metrics]'") from None
