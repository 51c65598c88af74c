"""What a configuration inside a checkpoint or an export may not say; it may come from anywhere."""

import re
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Union, get_args, get_origin

from mmalign.training.yaml_config import ConfigError

_WORD = re.compile(r"[\w./+-]*")

_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=("mmalign",))


@contextmanager
def trusting(packages: Iterable[str]) -> Iterator[None]:
    """Within this, classes of these packages may be named as well: those of one's own encoders, say."""
    before = _trusted.set((*_trusted.get(), *packages))
    try:
        yield
    finally:
        _trusted.reset(before)


def refuse_untrusted(class_path: Any, path: str) -> None:
    """Raise for the dotted path of a class that is not ours; `path` is the key that names it.

    Other packages are no better than strangers: torch has a class whose constructor starts a process.
    """
    package = str(class_path).split(".")[0]
    if package not in _trusted.get():
        raise ConfigError(
            f"{path}.class_path: {class_path!r} is outside of mmalign; what comes with weights may name it only if you "
            f"trust its package: --trust {package}, or mmalign.load(…, trust=['{package}'])"
        )


def refuse_classes(value: Any, path: str) -> None:
    """Raise for any class named below, for values of which no constructor's hint says what class they are.

    The parser would import and build it wherever it stands.
    """
    if isinstance(value, dict):
        refuse_class(value, path)
        for key, item in value.items():
            refuse_classes(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            refuse_classes(item, f"{path}.{number}")


def refuse_class(value: dict[Any, Any], path: str) -> None:
    """Raise where a mapping that is none of a class names one."""
    for key, item in value.items():
        if "class_path" in str(key):
            raise ConfigError(f"{path}.{key}: {item!r}, where no class may be named")


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
