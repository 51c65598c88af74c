"""Configurations as plain data: reading a YAML, overriding keys, telling differences. Imports nothing heavy."""

import copy
import difflib
import re
from pathlib import Path
from typing import Any

import yaml

_NAMED = re.compile(r"stages|losses|evaluation|retention|sources|stages\.[^.]+\.data|model\.init_args\.encoders")
"""Mappings whose keys are names that the user gives."""


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
            raise ConfigError(f"{file}: there is no arm {arm!r}{meant(arm, list(arms))}")
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
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: a configuration is a mapping, found {type(config).__name__}")
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def override(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of `config` with values replaced by dotted key ("stages.one.steps").

    The longest existing key wins where keys hold dots themselves. A value of None under a parent that is an optional
    mapping makes that mapping. A key below a name that the user gave (of a stage, an encoder, …) needs that name to be
    there; the name itself may be new.

    Raises:
        ConfigError: the parent of a key is no mapping, or is an entry that does not exist.
    """
    result = copy.deepcopy(config)
    for dotted, value in overrides.items():
        node, rest = result, dotted.split(".")
        above: list[str] = []
        while len(rest) > 1:
            heads = [i for i in range(len(rest) - 1, 0, -1) if ".".join(rest[:i]) in node]
            if heads:
                head, rest = ".".join(rest[: heads[0]]), rest[heads[0] :]
                if node[head] is None:
                    node[head] = {}
            else:
                head, rest = rest[0], rest[1:]
                if _NAMED.fullmatch(".".join(above)):
                    raise ConfigError(f"{dotted}: there is no {'.'.join([*above, head])}{meant(head, list(node))}")
                node[head] = {}
            above.append(head)
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
        try:
            overrides[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key}: {text!r} is not valid YAML: {_one_line(error)}") from None
        position += 1
    return overrides


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


def meant(name: str, names: list[str]) -> str:
    """The end of an error message about an unknown name."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(names))}" if names else ""
