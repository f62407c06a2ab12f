"""Registries with unique names: a decorator adds an entry where it is written, discovery imports the places."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from parity.errors import ParityError, UsageError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by unique name, in the order they were added.

    >>> colours = Registry[int]("colour")
    >>> colours.add("red", 3)
    3
    >>> colours["red"], colours.names()
    (3, ['red'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T) -> T:
        """Add an entry and return it.

        Raises:
            ParityError: the name is taken by another entry.
        """
        if name in self._entries:
            raise ParityError(f"two entries named {name!r} among {self.kind}s: {self._entries[name]} and {entry}")
        self._entries[name] = entry
        return entry

    def register(self, name: str) -> Callable[[T], T]:
        """Return the decorator that adds what it decorates under a name.

        Raises:
            ParityError: the name is taken.
        """
        return lambda entry: self.add(name, entry)

    def __getitem__(self, name: str) -> T:
        """Return the entry, or raise a `UsageError` with the nearest name."""
        if name not in self._entries:
            raise UsageError.unknown(self.kind, name, self._entries)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> list[str]:
        """Return the names in the order they were added."""
        return list(self._entries)

    def items(self) -> list[tuple[str, T]]:
        """Return names and entries in the order they were added."""
        return list(self._entries.items())


def discover(package: str) -> list[str]:
    """Import every module of a package, so that its decorators run; return the module names."""
    folder = importlib.import_module(package)
    names = sorted(found.name for found in pkgutil.iter_modules(folder.__path__, package + "."))
    for name in names:
        importlib.import_module(name)
    return names
