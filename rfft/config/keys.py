"""What a key and its value must be, by a schema of dataclasses; every mistake is a UserError of one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf

from rfft.errors import UserError

TRUTHS = ("no", "yes", "on", "off", "true", "false")


def require_list(hint: Any, text: str, key: str, prefix: str = "") -> None:
    """Raise a UserError for a single value, given as its text, where the hint wants a list of such values."""
    is_list = text.startswith(("[", "$")) or text in (
        "",
        "null",
        "~",
    )  # or may become one, or is refused anyway
    if get_origin(hint) is not list or is_list:
        return
    (item,) = get_args(hint)
    if is_dataclass(item) and not text.startswith("{"):
        text = f"{{{next(iter(get_type_hints(item)))}: {text}}}"
    raise UserError(f"{key} is a list, not one value: write {prefix}[{text}]")


def text_of(value: Any) -> str:
    """Return how a value of a YAML file or of a mapping begins, as YAML."""
    if isinstance(value, (yaml.SequenceNode, list, tuple)):
        return "[...]"
    if isinstance(value, (yaml.MappingNode, Mapping)):
        return "{...}"
    return "null" if value is None else str(getattr(value, "value", value))


def keep_word(hint: Any, settings: DictConfig, key: str, word: str) -> None:
    """Put back a word that YAML 1.1 took for a truth value, where the hint wants a text."""
    text = str in (hint, *get_args(hint)) or get_origin(hint) is Literal
    if text and word.lower() in TRUTHS:
        OmegaConf.update(settings, key, word)


def check_key(schema: type, key: str, is_group: bool, place: str) -> Any:
    """Return the type that a dotted key has in the schema; where it has none, offer the nearest name."""
    level: Any = schema
    done: list[str] = []
    for name in key.split("."):
        if get_origin(level) is dict:  # options: their names are for somebody else to know
            return Any
        names = list(get_type_hints(level)) if is_dataclass(level) else []
        if name not in names:
            group = f"in {'.'.join(done)}" if done else "at the top level"
            raise UserError(f"{place}: unknown key {key!r}; {_suggestion(schema, names, done, name, group)}")
        level = get_type_hints(level)[name]
        done.append(name)
    if is_dataclass(level) and not is_group:
        raise UserError(
            f"{place}: {key} is a group, not one setting; in it: {', '.join(get_type_hints(level))}"
        )
    return level


def _suggestion(schema: type, names: list[str], done: list[str], name: str, group: str) -> str:
    for near in difflib.get_close_matches(name, names, n=1):
        return f"did you mean {'.'.join([*done, near])!r}?"
    everywhere = list(_all_keys(schema))
    for key in everywhere:
        if key.rpartition(".")[2] == name:
            return f"did you mean {key!r}?"
    if names:
        return f"known {group}: {', '.join(names)}"
    return f"{'.'.join(done)!r} is a single setting"


def _all_keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(schema).items():
        yield f"{prefix}{name}"
        if is_dataclass(hint):
            yield from _all_keys(hint, f"{prefix}{name}.")
