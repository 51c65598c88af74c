"""What a configuration inside a checkpoint or an export may not say; it may come from anywhere."""

import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from mmalign.training.yaml_config import ConfigError

TRUSTED_PACKAGES = ("mmalign", "timm", "open_clip", "transformers", "torch")
"""Whose classes such a configuration may name. A user's own file may name any class."""

_WORD = re.compile(r"[\w./+-]*")


def refuse_untrusted(class_path: Any, path: str) -> None:
    """Raise for the dotted path of a class of any other package; `path` is the key that names it."""
    if str(class_path).split(".")[0] not in TRUSTED_PACKAGES:
        raise ConfigError(f"{path}.class_path: {class_path!r} is outside of {', '.join(TRUSTED_PACKAGES)}")


def refuse_foreign(value: Any, path: str = "") -> None:
    """Raise for such a path anywhere below, whether or not a constructor asks for a class there.

    The parser would import it, and importing a module runs it.
    """
    if isinstance(value, dict):
        if "class_path" in value:
            refuse_untrusted(value["class_path"], path)
        for key, item in value.items():
            refuse_foreign(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            refuse_foreign(item, f"{path}.{number}")


def refuse_text(value: Any, hint: Any, path: str) -> None:
    """Raise for a string that the parser would take for a class, and import, or for the YAML of one."""
    if hint is Any and isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            refuse_text(item, hint, path)
    if not isinstance(value, str):
        return
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = (str, int, float, bool, type(None), Any)
    if not all(option in plain or get_origin(option) is Literal for option in options):
        raise ConfigError(f"{path}: {value!r} is a text, where a mapping or a list is due")
    if Any in options and not _WORD.fullmatch(value):
        raise ConfigError(f"{path}: {value!r} is more than a word")
