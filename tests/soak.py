"""How many examples a property is tried on."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def examples(number: int, **more: Any) -> settings:
    """
    Give hypothesis a number of examples of its own, times --soak like everybody's.

    :param number: in an ordinary run.
    :param more: other settings.
    """
    factor = settings().max_examples / settings.get_profile("hand").max_examples
    return settings(max_examples=max(1, round(number * factor)), **more)
