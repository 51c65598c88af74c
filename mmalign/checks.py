"""Checks of single values, whose messages begin with the name of the argument: a configuration puts its key before."""

import math


def at_least(lowest: int | float, **values: int | float | None) -> None:
    """Raise a ValueError for the first value below `lowest`, infinite or NaN; None passes."""
    for name, value in values.items():
        if value is not None and not lowest <= value < math.inf:
            raise ValueError(f"{name}: is {value}, must be at least {lowest}")


def positive(**values: int | float | None) -> None:
    """Raise a ValueError for the first value that is not above 0, or is infinite or NaN; None passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name}: is {value}, must be positive")


def share(**values: int | float) -> None:
    """Raise a ValueError for the first value that is not from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: is {value}, must be from 0 to 1")
