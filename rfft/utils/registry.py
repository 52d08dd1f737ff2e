"""Parts that a config names: one of the known names, or a dotted path to a class or function of one's own."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfft.errors import UserError


def resolve(kind: str, name: str, registry: Mapping[str, str]) -> Any:
    """Returns what `name` stands for; its module is imported only now.

    kind: the config key that names it, for messages ("reward.terms"). name: a key of `registry`, or a dotted
    path "package.module:Name"; a module may lie in the folder in which the command is started. registry: the
    known names, each with its dotted path. Raises UserError where nothing is found.
    """
    module, colon, attribute = registry.get(name, name).partition(":")
    if not (module and colon and attribute) or module.startswith("."):
        raise UserError(
            f"{kind} {name!r} is not known; give {', '.join(registry)} or a path package.module:Name"
        )
    if str(Path.cwd()) not in sys.path:  # behind all others, so that nothing installed is hidden
        sys.path.append(str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(f"{kind} {name!r} cannot be used: {error}") from error


def construct(kind: str, name: str, options: Mapping[str, Any], registry: Mapping[str, str]) -> Any:
    """Returns resolve(kind, name, registry)(**options); raises UserError where the options do not fit."""
    factory = resolve(kind, name, registry)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:  # of the call itself: one that is raised inside keeps its traceback
        raise UserError(f"{kind} {name!r}: its options do not fit: {error}") from error
    return factory(**options)
