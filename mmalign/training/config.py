"""From a YAML and overrides to a checked configuration, and from that to objects.

A class's typed constructor is its schema; jsonargparse checks values against it. Keys are checked here first, because a
misspelt one should be named with its whole path and the name that was probably meant.
"""

import copy
import difflib
import importlib
import inspect
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from mmalign.training.experiment import Experiment

TRUSTED_PACKAGES = ("mmalign", "timm", "open_clip", "transformers", "torch")
"""Whose classes a configuration inside a checkpoint or an export may name. A user's own file may name any class."""


class ConfigError(ValueError):
    """The configuration is wrong; the message names file and key."""


def read_config(file: Path, overrides: dict[str, Any] | None = None, arm: str | None = None) -> dict[str, Any]:
    """A YAML file, with overrides by dotted key, as plain data; not checked yet.

    A file may also hold `arms` (by name, overrides by dotted key) and `seeds`, which `mmalign compare` reads; they are
    no part of the configuration of one run.

    Raises:
        ConfigError: no such file, no YAML, no mapping, or no such arm.
    """
    config = load_yaml(file)
    arms = config.pop("arms", None) or {}
    config.pop("seeds", None)
    if arm is not None:
        if arm not in arms:
            raise ConfigError(f"{file}: there is no arm {arm!r}{_meant(arm, list(arms))}")
        config = override(config, {**(arms[arm] or {}), "arm": arm})
    return override(config, overrides or {})


def load_yaml(file: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: no such file, no YAML, or no mapping.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: a configuration is a mapping, found {type(config).__name__}")
    return config


def override(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of `config` with values replaced by dotted key ("stages.one.steps").

    The longest existing key wins where keys hold dots themselves. A value of None under a parent that is an optional
    mapping makes that mapping.

    Raises:
        ConfigError: the parent of a key does not exist.
    """
    result = copy.deepcopy(config)
    for dotted, value in overrides.items():
        node, rest = result, dotted.split(".")
        while len(rest) > 1:
            heads = [i for i in range(len(rest) - 1, 0, -1) if ".".join(rest[:i]) in node]
            if heads:
                head, rest = ".".join(rest[: heads[0]]), rest[heads[0] :]
                if node[head] is None:
                    node[head] = {}
            else:
                head, rest = rest[0], rest[1:]
                node[head] = {}
            node = node[head]
            if not isinstance(node, dict):
                raise ConfigError(f"{dotted}: {head!r} is no mapping, so nothing below it can be overridden")
        node[rest[0]] = copy.deepcopy(value)
    return result


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """["--seed", "3", "--stages.one.steps=5"] -> {"seed": 3, "stages.one.steps": 5}; values are YAML.

    Raises:
        ConfigError: an argument is no override.
    """
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        key, equals, text = argument.removeprefix("--").partition("=")
        if not equals and not argument.startswith("--"):
            raise ConfigError(f"{argument!r}: an override is written --KEY VALUE, --KEY=VALUE or KEY=VALUE")
        if not equals:
            position += 1
            if position == len(arguments):
                raise ConfigError(f"{argument}: the value is missing")
            text = arguments[position]
        overrides[key] = yaml.safe_load(text)
        position += 1
    return overrides


def check_config(config: dict[str, Any], trusted_only: bool = False) -> dict[str, Any]:
    """The complete configuration with every default filled in, as plain data. Nothing is built.

    Args:
        trusted_only: for configurations that come out of a checkpoint or an export.

    Raises:
        ConfigError: names the key.
    """
    _check_keys(config, Experiment, "", trusted_only)
    try:
        parsed = _parser().parse_object(copy.deepcopy(config))
    except Exception as error:
        for path, value, hint in _leaves(config, Experiment, ""):
            if not _fits(value, hint):
                expected = str(hint).replace("typing.", "")
                expected = hint.__name__ if isinstance(hint, type) else expected
                raise ConfigError(f"{path}: {value!r} is not a valid {expected}") from None
        raise ConfigError(str(error)) from None
    return _plain(parsed.clone().as_dict())


def build_experiment(config: dict[str, Any]) -> Experiment:
    """Objects from a configuration that `check_config` returned. Weights are loaded here.

    Raises:
        ConfigError: a constructor refused its values.
    """
    return Experiment(**vars(_instantiate(_parser(), config)))


def build_part(part: Any, hint: Any) -> Any:
    """One value of a checked configuration ("model", say) as the object that its type hint asks for."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=hint)
    return _instantiate(parser, {"part": part}).part


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        missing = object()
        return [
            difference
            for key in keys
            for difference in differences(
                old.get(key, missing), new.get(key, missing), f"{path}.{key}" if path else key
            )
        ]
    return [] if old == new else [path]


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


def _class_of(class_path: Any, path: str, trusted_only: bool) -> type:
    if not isinstance(class_path, str) or "." not in class_path:
        raise ConfigError(f"{path}.class_path: {class_path!r} is not the dotted path of a class")
    module_name, _, name = class_path.rpartition(".")
    if trusted_only and module_name.split(".")[0] not in TRUSTED_PACKAGES:
        raise ConfigError(f"{path}.class_path: {class_path!r} is outside of {', '.join(TRUSTED_PACKAGES)}")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise ConfigError(f"{path}.class_path: {class_path!r}: {error}") from None
    if not inspect.isclass(found):
        names = [n for n, v in vars(importlib.import_module(module_name)).items() if inspect.isclass(v)]
        raise ConfigError(f"{path}.class_path: there is no class {class_path!r}{_meant(name, names)}")
    return found


def _meant(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(names))}" if names else ""


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
    for item, item_hint, item_path in _children(value, hint, path, trusted_only, raising=True):
        _check_keys(item, item_hint, item_path, trusted_only)


def _leaves(value: Any, hint: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    children = list(_children(value, hint, path, False, raising=False))
    if not children:
        yield path, value, hint
    for item, item_hint, item_path in children:
        yield from _leaves(item, item_hint, item_path)


def _children(value: Any, hint: Any, path: str, trusted_only: bool, raising: bool) -> Iterator[tuple[Any, Any, str]]:
    if not isinstance(value, dict):
        return
    here = f"{path}." if path else ""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is dict:
            for key, item in value.items():
                yield item, get_args(option)[1], f"{here}{key}"
            return
        if inspect.isclass(option) and option not in (dict, type(None), str, int, float, bool, list):
            owner, given, where = option, value, here
            if "class_path" in value:
                for key in value:
                    if key not in ("class_path", "init_args"):
                        raise ConfigError(f"{here}{key}: beside class_path there is only init_args")
                owner = _class_of(value["class_path"], path, trusted_only)
                if not issubclass(owner, option):
                    raise ConfigError(f"{path}.class_path: {value['class_path']!r} is not a {option.__name__}")
                given, where = value.get("init_args") or {}, f"{here}init_args."
            elif not is_dataclass(option):
                raise ConfigError(f"{path}: names no class_path (a {option.__name__} is needed)")
            parameters = _parameters(owner)
            for key, item in given.items():
                if key not in parameters:
                    raise ConfigError(f"{where}{key}: unknown key{_meant(key, list(parameters))}")
                yield item, parameters[key][0], f"{where}{key}"
            for name, (_, required) in parameters.items():
                if raising and required and name not in given:
                    raise ConfigError(f"{where}{name}: is missing")
            return


def _fits(value: Any, hint: Any) -> bool:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=hint)
        parser.parse_object({"value": copy.deepcopy(value)})
    except Exception:
        return False
    return True
