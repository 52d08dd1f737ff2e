"""Read settings into a dataclass: from a YAML file, a mapping, and overrides of the form `a.b=c`.

Every mistake is a UserError of one line that names the place, the key and the fix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rfft.config.keys import check_key, keep_word, require_list, text_of
from rfft.errors import UserError

T = TypeVar("T")
COMMAND_LINE, MAPPING = "command line", "settings"
# What PyYAML and OmegaConf let through: `!!bool x`, `!!timestamp x`, {} for a list, numbers beyond a float.
VALUE_ERRORS = (OmegaConfBaseException, ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


class Preset(NamedTuple):
    """A setting whose value also stands for others, which come right before the place that gives it."""

    key: str  # of that setting
    options: str  # of one that belongs to its value alone: an override of `key` clears it
    settings: Callable[[Any], Mapping[str, Any]]  # from the config as it is without them


def read_file(schema: type[T], path: Path, overrides: Sequence[str] = (), preset: Preset | None = None) -> T:
    """Return the schema's defaults, changed by a YAML file and then by overrides.

    `preset`: comes between the defaults and the file, or, where an override names it, after the file.
    """
    node, tree = _parse(path)
    lines: dict[str, int] = {}
    for key, line, value in _settings(node):
        lines[key] = line
        hint = check_key(schema, key, isinstance(value, yaml.MappingNode), f"{path}:{line}")
        require_list(hint, text_of(value), f"{path}:{line}: {key}")
        if isinstance(value, yaml.ScalarNode):
            keep_word(hint, tree, key, value.value)

    def read(settings: DictConfig) -> DictConfig:
        return _merge(settings, tree, lambda key: f"{path}:{lines[key]}" if key in lines else str(path))

    return _complete(schema, read, overrides, preset, str(path))


def read_mapping(
    schema: type[T],
    mapping: Mapping[str, Any],
    overrides: Sequence[str] = (),
    preset: Preset | None = None,
) -> T:
    """Return the schema's defaults, changed by a nested mapping and then by overrides; `preset` as above.

    The mapping may also have dotted keys: {"trainer": {"steps": 2}} and {"trainer.steps": 2} are the same.
    """
    trees = []
    for key, value in _leaves(schema, mapping):
        tree = OmegaConf.create()
        try:
            OmegaConf.update(tree, key, value)
        except VALUE_ERRORS as error:
            raise UserError(f"{MAPPING}: {key}: {_first_line(error)}") from None
        trees.append(tree)

    def read(settings: DictConfig) -> DictConfig:
        for tree in trees:
            settings = _merge(settings, tree, lambda _: MAPPING)
        return settings

    return _complete(schema, read, overrides, preset, MAPPING)


def groups(path: Path) -> list[str]:
    """Return the names at the top level of a YAML file, whatever its schema."""
    return [key for key, _, _ in _settings(_parse(path)[0]) if "." not in key]


def _defaults(schema: type) -> DictConfig:
    OmegaConf.clear_resolver("oc.env")  # a config is shown and sent to trackers: it reads no environment
    return OmegaConf.structured(schema)


def _complete(
    schema: type[T],
    read: Callable[[DictConfig], DictConfig],
    overrides: Sequence[str],
    preset: Preset | None,
    source: str,
) -> T:
    """Return the defaults with what is read, the overrides, and the preset that one of them names."""
    changes = [(override, _parse_override(schema, override)) for override in overrides]
    found: T = _apply(read(_defaults(schema)), changes, source)
    if preset is None:
        return found
    layer = preset.settings(found)
    if not any(override.startswith(f"{preset.key}=") for override in overrides):
        below: Any = OmegaConf.merge(_defaults(schema), layer)
        return _apply(read(below), changes, source) if layer else found
    settings = read(_defaults(schema))
    OmegaConf.update(settings, preset.options, {}, merge=False)
    return _apply(OmegaConf.merge(settings, layer), changes, source)


def _apply(settings: Any, changes: Sequence[tuple[str, DictConfig]], source: str) -> Any:
    """Apply the overrides, and make the schema's dataclass of the settings."""
    for override, change in changes:
        settings = _merge(settings, change, partial(_place_of_override, override))
    try:
        return OmegaConf.to_object(settings)
    except (*VALUE_ERRORS, RecursionError) as error:  # an interpolation that leads nowhere, or to itself
        raise UserError(f"{source}: {_first_line(error)}") from None


def _leaves(schema: type, mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every setting in a nested mapping."""
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        is_group = isinstance(value, Mapping)
        hint = check_key(schema, key, is_group, MAPPING)
        if is_dataclass(hint):
            yield from _leaves(schema, value, f"{key}.")
        else:
            require_list(hint, text_of(value), f"{MAPPING}: {key}")
            yield key, str(value) if isinstance(value, Path) else value


def _parse(path: Path) -> tuple[yaml.Node | None, Any]:
    """Return the YAML node tree (for line numbers) and the values of a file."""
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{path}: anchors and aliases (&, *) are not for configs; write it out")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}: expected settings like `run:` with `name: ...` below it")
        return node, OmegaConf.create(
            text if node else "{}"
        )  # a safe loader, too, that refuses repeated keys
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UserError(f"{place}: not valid YAML: {problem}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this config: {error.strerror}") from None
    except VALUE_ERRORS as error:
        raise UserError(f"{path}: a value that cannot be read: {_first_line(error)}") from None


def _settings(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield dotted key, line number and value of every setting in the file."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, key_node.start_mark.line + 1, value_node
        yield from _settings(value_node, f"{key}.")


def _parse_override(schema: type, override: str) -> DictConfig:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{COMMAND_LINE}: {override!r} is no setting; write it as group.name=value")
    hint = check_key(schema, key, value.startswith("{"), COMMAND_LINE)
    require_list(hint, value.strip(), f"{COMMAND_LINE}: {key}", f"{key}=")
    try:
        settings = OmegaConf.from_dotlist([override])
        keep_word(hint, settings, key, value)
    except (yaml.YAMLError, *VALUE_ERRORS, RecursionError):
        raise UserError(f"{COMMAND_LINE}: cannot read the value in {override!r}") from None
    return settings


def _merge(settings: Any, new: DictConfig, place: Callable[[str], str]) -> Any:
    try:
        return OmegaConf.merge(settings, new)
    except (*VALUE_ERRORS, RecursionError) as error:
        key = getattr(error, "full_key", None) or ""  # {} where a list belongs, for one, comes without a key
        named = f"{place(key)}: {key}" if key else place(key)
        raise UserError(f"{named}: {_first_line(error)}") from None


def _place_of_override(override: str, key: str) -> str:
    return COMMAND_LINE if key else f"{COMMAND_LINE}: {override}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
