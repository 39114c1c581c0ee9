"""Arguments as callers give them: converted in one place, and refused by their names."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from realmem.layout import parse_size

WORD = 1 << 64
GIB = 1 << 30


def as_int(value: Any, what: str, low: int | None = None, high: int | None = None) -> int:
    """
    Take an integer of any integer type; a bool is none.

    :param value: what the caller gave.
    :param what: its name, for the message.
    :param low: the least that it may be, or None.
    :param high: the greatest, or None.
    :raises TypeError: not an integer.
    :raises ValueError: out of range.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int, not {value!r}")
    number = operator.index(value)
    if low is not None and number < low:
        within = f"at least {low}" if high is None else f"within {low} and {high}"
        raise ValueError(f"{what} must be {within}: {number}")
    if high is not None and number > high:
        within = f"at most {high}" if low is None else f"within {low} and {high}"
        raise ValueError(f"{what} must be {within}: {number}")
    return number


def as_address(value: Any, what: str = "address") -> int:
    """
    Take an address, or a length: 64 bits without a sign.

    :raises TypeError: not an integer.
    :raises ValueError: not within 0 and 2**64 - 1.
    """
    return as_int(value, what, 0, WORD - 1)


def as_register(value: Any, what: str) -> int:
    """
    Take an argument of a system call as C passes it: 64 bits, a negative one wrapped around.

    What it means, and whether it is allowed, is for the call to say.

    :raises TypeError: not an integer.
    :raises ValueError: no register holds it.
    """
    return as_int(value, what, -WORD // 2, WORD - 1) % WORD


def as_bool(value: Any, what: str) -> bool:
    """
    Take a switch: a bool, or 0 or 1.

    :raises TypeError: anything else.
    """
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{what} must be True or False, not {value!r}")
    return bool(value)


def as_str(value: Any, what: str) -> str:
    """
    Take a string.

    :raises TypeError: not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {value!r}")
    return value


def as_callable(value: Any, what: str) -> Callable[..., Any]:
    """
    Take something that can be called.

    :raises TypeError: it cannot.
    """
    if not callable(value):
        raise TypeError(f"{what} must be callable, not {value!r}")
    return value  # type: ignore[no-any-return]


def as_window(window: int | str) -> int:
    """
    Take the ``window`` option of a machine, in bytes.

    :raises TypeError: neither an int nor a string.
    :raises ValueError: not a power of two from 1G to 32T.
    """
    length = parse_size(window, "window")
    if not GIB <= length <= 1 << 45 or length & length - 1:
        raise ValueError(f"window must be a power of two from 1G to 32T: {window!r}")
    return length
