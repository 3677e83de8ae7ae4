"""Which methods of an object are those of its library, and which a user has overridden."""

from __future__ import annotations

import operator
from typing import Any


class Methods:
    """The methods that a class defines, as they are when this is made.

    Args:
        kind: The class.
        *names: Its methods; at least two.
    """

    def __init__(self, kind: type[Any], *names: str) -> None:
        self._names = frozenset(names)
        self._get = operator.attrgetter(*names)
        self._originals = self._get(kind)

    def are_those_of(self, value: Any) -> bool:
        """Return False if a subclass, the instance, or a patch of the class overrides one."""
        return bool(
            self._get(type(value)) == self._originals and self._names.isdisjoint(value.__dict__)
        )
