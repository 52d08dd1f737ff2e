"""Read settings into a dataclass: from a YAML file, a mapping, and overrides of the form `a.b=c`.

Every mistake is a UserError of one line that names the place, the key and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rfft.errors import UserError

T = TypeVar("T")
COMMAND_LINE, MAPPING = "command line", "settings"
TRUTHS = ("no", "yes", "on", "off", "true", "false")
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
        hint = _check_key(schema, key, isinstance(value, yaml.MappingNode), f"{path}:{line}")
        _require_list(hint, _text(value), f"{path}:{line}: {key}")
        if isinstance(value, yaml.ScalarNode):
            _keep_word(hint, tree, key, value.value)

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
        hint = _check_key(schema, key, is_group, MAPPING)
        if is_dataclass(hint):
            yield from _leaves(schema, value, f"{key}.")
        else:
            _require_list(hint, _text(value), f"{MAPPING}: {key}")
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
    hint = _check_key(schema, key, value.startswith("{"), COMMAND_LINE)
    _require_list(hint, value.strip(), f"{COMMAND_LINE}: {key}", f"{key}=")
    try:
        settings = OmegaConf.from_dotlist([override])
        _keep_word(hint, settings, key, value)
    except (yaml.YAMLError, *VALUE_ERRORS, RecursionError):
        raise UserError(f"{COMMAND_LINE}: cannot read the value in {override!r}") from None
    return settings


def _require_list(hint: Any, text: str, key: str, prefix: str = "") -> None:
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


def _text(value: Any) -> str:
    """Return how a value of a YAML file or of a mapping begins, as YAML."""
    if isinstance(value, (yaml.SequenceNode, list, tuple)):
        return "[...]"
    if isinstance(value, (yaml.MappingNode, Mapping)):
        return "{...}"
    return "null" if value is None else str(getattr(value, "value", value))


def _keep_word(hint: Any, settings: DictConfig, key: str, word: str) -> None:
    """Put back a word that YAML 1.1 took for a truth value, where the hint wants a text."""
    text = str in (hint, *get_args(hint)) or get_origin(hint) is Literal
    if text and word.lower() in TRUTHS:
        OmegaConf.update(settings, key, word)


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


def _check_key(schema: type, key: str, is_group: bool, place: str) -> Any:
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
