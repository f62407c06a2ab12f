"""Every example in a docstring of the package gives what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import parity

MODULES = sorted(found.name for found in pkgutil.walk_packages(parity.__path__, "parity."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_module(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    assert sum(len(found.examples) for name in MODULES for found in finder.find(importlib.import_module(name))) > 10
