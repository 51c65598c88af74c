"""The oldest versions that are safe to use. Read from the packages' metadata: none of them is imported for it."""

import re
from importlib.metadata import PackageNotFoundError, version

FLOORS: dict[str, tuple[str, str]] = {
    "lightning": ("2.6.6", "CVE-2026-58659; 2.6.2 and 2.6.3 were malware"),
    "torch": ("2.10", "CVE-2026-24747"),
    "pillow": ("12.1.1", "CVE-2026-25990"),
}
"""Package -> (floor, what is wrong with the versions below). pyproject.toml asks for the same."""


def check_floors() -> None:
    """Refuse to go on with a version that is known to be unsafe.

    Raises:
        ImportError: names the package, its version, the floor and the reason.
    """
    for package, (floor, reason) in FLOORS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue  # importing it will say so
        if _order(installed) < _order(floor):
            raise ImportError(
                f"{package} {installed} is not safe to use ({reason}): install {package} >= {floor}, "
                f"for example with pip install '{package}>={floor}'"
            )


def _order(text: str) -> tuple[tuple[int, ...], bool]:
    """Sorts like the versions; a pre-release ("2.10.0rc1", "2.10.0.dev3") comes before its release."""
    public = text.partition("+")[0]
    release = re.match(r"[0-9]+(\.[0-9]+)*", public)
    numbers = [int(part) for part in release[0].split(".")] if release else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), re.search(r"(a|b|rc|\.dev)[0-9]", public) is None
