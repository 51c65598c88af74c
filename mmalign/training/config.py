"""From plain data to a checked configuration, and from that to objects.

A class's typed constructor is its schema; jsonargparse checks values against it. Keys are checked here first, because a
misspelt one should be named with its whole path and the name that was probably meant.
"""

import copy
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from mmalign.training.experiment import Experiment, check_run
from mmalign.training.trust import refuse_class, refuse_classes, refuse_text, refuse_untrusted
from mmalign.training.yaml_config import ConfigError, meant


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """The complete configuration with every default filled in, as plain data. Nothing is built.

    Raises:
        ConfigError: names the key.
    """
    _check_keys(config, Experiment, "", False)
    try:
        parsed = _parser().parse_object(copy.deepcopy(config))
    except Exception as error:
        for path, value, hint in _leaves(config, Experiment, ""):
            if not _fits(value, hint):
                expected = str(hint).replace("typing.", "")
                expected = hint.__name__ if isinstance(hint, type) else expected
                raise ConfigError(f"{path}: {value!r} is not a valid {expected}") from None
        raise ConfigError(str(error)) from None
    checked = _plain(parsed.clone().as_dict())
    try:
        check_run(checked["name"], checked["seed"], checked["max_fault_share"])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for key, item, hint in _parts(checked, Experiment, ""):
        if is_dataclass(hint):
            _try_part(key, item, hint)
    return checked


def check_part(part: Any, hint: Any, path: str, trusted_only: bool = False) -> None:
    """The checks of names for one value of a configuration ("model", say), which `build_part` can then build.

    Args:
        trusted_only: for configurations that come out of a checkpoint or an export.

    Raises:
        ConfigError: names the key.
    """
    _check_keys(part, hint, path, trusted_only)


def build_experiment(config: dict[str, Any]) -> Experiment:
    """Objects from a configuration that `check_config` returned. Weights are loaded here.

    Raises:
        ValueError: a constructor, or the experiment as a whole, refuses its values; names the key.
    """
    try:
        parts = _instantiate(_parser(), config)
    except ValueError:
        for key, item, hint in _parts(config, Experiment, ""):
            _try_part(key, item, hint)
        raise
    return Experiment(**vars(parts))


def _parts(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path, value and type hint of all that a class is built from, inner ones before those that hold them."""
    for item, item_hint, item_path in _children(value, hint, path, False, raising=False) or []:
        yield from _parts(item, item_hint, item_path)
        for option in _options(item_hint):
            if isinstance(item, dict) and _is_owner(option) and ("class_path" in item or is_dataclass(option)):
                yield item_path, item, option


def _try_part(path: str, part: dict[str, Any], hint: Any) -> None:
    """Build one part; raise a ConfigError with the whole key where its constructor refuses a value."""
    try:
        build_part(part, hint)
    except ValueError as error:
        message, owner, below = str(error), hint, path
        if "class_path" in part:
            owner, below = class_of(part["class_path"]), f"{path}.init_args"
        if message.startswith((f"{path}.", f"{path}:")):
            raise ConfigError(message) from None
        named = re.split(r"\W", message, maxsplit=1)[0] in _parameters(owner)
        raise ConfigError(f"{below}.{message}" if named else f"{path}: {message}") from None


def build_part(part: Any, hint: Any) -> Any:
    """One value of a checked configuration ("model", say) as the object that its type hint asks for."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=hint)
    return _instantiate(parser, {"part": part}).part


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment)
    return parser


def _instantiate(parser: Any, config: dict[str, Any]) -> Any:
    parsed = parser.parse_object(copy.deepcopy(config))
    return parser.instantiate(parsed)


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as strings, so that YAML, JSON and checkpoints hold the same."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def class_of(class_path: Any, path: str = "", trusted_only: bool = False) -> Any:
    """The class at a dotted path.

    Raises:
        ConfigError: there is none, or it may not be named; `path` is the key that names it.
    """
    if not isinstance(class_path, str) or "." not in class_path:
        raise ConfigError(f"{path}.class_path: {class_path!r} is not the dotted path of a class")
    module_name, _, name = class_path.rpartition(".")
    if trusted_only:
        refuse_untrusted(class_path, path)
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ConfigError(f"{path}.class_path: {class_path!r}: {error}") from None
    if not inspect.isclass(found):
        names = [n for n, v in vars(importlib.import_module(module_name)).items() if inspect.isclass(v)]
        raise ConfigError(f"{path}.class_path: there is no class {class_path!r}{meant(name, names)}")
    if trusted_only:
        refuse_untrusted(found.__module__, path)  # a trusted module may have imported a class of another package
    return found


def _parameters(owner: type) -> dict[str, tuple[Any, bool]]:
    """Constructor parameters: name -> (type hint, whether it is required)."""
    hints = get_type_hints(owner if is_dataclass(owner) else owner.__init__)  # type: ignore[misc]
    signature = inspect.signature(owner)
    return {
        name: (hints.get(name, Any), parameter.default is inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }


def _check_keys(value: Any, hint: Any, path: str, trusted_only: bool) -> None:
    """Raise for an unknown or missing key, or an unknown class, anywhere below."""
    if trusted_only:
        refuse_text(value, hint, path)
    children = _children(value, hint, path, trusted_only, raising=True)
    if trusted_only and children is None:
        refuse_classes(value, path)
    for item, item_hint, item_path in children or []:
        _check_keys(item, item_hint, item_path, trusted_only)


def _leaves(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    children = _children(value, hint, path, False, raising=False) or []
    if not children:
        yield path, value, hint
    for item, item_hint, item_path in children:
        yield from _leaves(item, item_hint, item_path)


def _children(value: Any, hint: Any, path: str, trusted_only: bool, raising: bool) -> list[tuple[Any, Any, str]] | None:
    """What a mapping holds, each with its type hint and its path; None where the hint says nothing of what is below."""
    if not isinstance(value, dict):
        return None
    here = f"{path}." if path else ""
    for option in _options(hint):
        if get_origin(option) is dict:
            if trusted_only:
                refuse_class(value, path)
            return [(item, get_args(option)[1], f"{here}{key}") for key, item in value.items()]
        if _is_owner(option):
            owner, given, where = option, value, here
            if "class_path" in value:
                for key in value:
                    if key not in ("class_path", "init_args"):
                        raise ConfigError(f"{here}{key}: beside class_path there is only init_args")
                owner = class_of(value["class_path"], path, trusted_only)
                if not issubclass(owner, option):
                    raise ConfigError(f"{path}.class_path: {value['class_path']!r} is not a {option.__name__}")
                given, where = value.get("init_args") or {}, f"{here}init_args."
            elif not is_dataclass(option):
                raise ConfigError(f"{path}: names no class_path (a {option.__name__} is needed)")
            parameters = _parameters(owner)
            for key in given:
                if key not in parameters:
                    raise ConfigError(f"{where}{key}: unknown key{meant(key, list(parameters))}")
            for name, (_, required) in parameters.items():
                if raising and required and name not in given:
                    raise ConfigError(f"{where}{name}: is missing")
            return [(item, parameters[key][0], f"{where}{key}") for key, item in given.items()]
    return None


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_owner(hint: Any) -> bool:
    """Whether it is a class whose constructor says what may be below."""
    return inspect.isclass(hint) and hint not in (Any, dict, type(None), str, int, float, bool, list)


def _fits(value: Any, hint: Any) -> bool:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
        parser.parse_object({"value": copy.deepcopy(value)})
    except Exception:
        return False
    return True
