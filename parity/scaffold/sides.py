"""The two sides a port author names: a class or function that gives a model, and how its forward is called."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import torch
from torch import nn

from parity.errors import ModelFailed, UsageError
from parity.pair import Build


@dataclass(frozen=True)
class Factory:
    """What gives one side's model.

    Args:
        where: "package.module:Class" or "package.module:function".
        config: keyword arguments; empty for a callable that needs none.
        call: "package.module:function" of (model, inputs) that runs one forward; None: proposed from the signature.
    """

    where: str
    config: Mapping[str, Any] = field(default_factory=dict)
    call: str | None = None

    @property
    def takes_build(self) -> bool:
        """Whether the callable takes a `Build`: it then places, casts and fills its model by itself."""
        return "build" in _parameters(resolved(self.where))[:1] and "build" not in self.config

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Build the model on the CPU, in eval mode.

        Raises:
            ModelFailed: it raises, or gives no module.
            UsageError: there is no such callable.
        """
        make = resolved(self.where)
        try:
            built = make(Build(dtype=dtype)) if self.takes_build else make(**self.config)
        except Exception as error:
            words = " ".join(str(error).split())[:200]
            way = "give it JSON (--reference-config, --native-config), or name a function without arguments"
            raise ModelFailed(f"{self.where} does not build: {type(error).__name__}: {words}\n{way}") from error
        if not isinstance(built, nn.Module):
            raise ModelFailed(f"{self.where} gives a {type(built).__name__}, not a torch module")
        built = built if self.takes_build else nn.Module.to(built, dtype)
        return built.eval().requires_grad_(False)


def config_of(text: str | None, option: str) -> dict[str, Any]:
    """Read keyword arguments from JSON.

    Raises:
        UsageError: it is no JSON object.
    """
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise UsageError(f'{option} is no JSON: {error}\nvalid: {option} \'{{"num_layers": 2}}\'') from error
    if not isinstance(found, dict):
        raise UsageError(f'{option} is a {type(found).__name__}\nvalid: a JSON object, \'{{"num_layers": 2}}\'')
    return found


def resolved(where: str) -> Any:
    """Import what "package.module:name.name" names; a step that ends in `()` is called.

    Raises:
        UsageError: it is not of that form, the module does not import, or there is no such name.
    """
    module_name, colon, path = where.partition(":")
    if not colon or not module_name or not path:
        raise UsageError(f"{where!r} names nothing that can be imported\nvalid: package.module:name")
    try:
        held: Any = importlib.import_module(module_name)
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise UsageError(f"{module_name} does not import: {type(error).__name__}: {words}") from error
    for step in path.split("."):
        name = step.removesuffix("()")
        if not hasattr(held, name):
            raise UsageError.unknown(f"name in {module_name}", name, [n for n in dir(held) if not n.startswith("__")])
        held = getattr(held, name)
        held = held() if step.endswith("()") else held
    return held


def called_with(function: Callable[..., Any], **values: Any) -> Any:
    """Call a function with those of the values its parameters name."""
    wanted = _parameters(function)
    return function(**{name: value for name, value in values.items() if name in wanted})


def _parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def home_of(model: nn.Module) -> tuple[str, str | None]:
    """Return the module of a model's class, and the distribution it came with; None for the project's own code."""
    module = type(model).__module__
    found = _distributions().get(module.partition(".")[0], [])
    return module, found[0] if found else None


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return which distributions hold each top-level package; reads the file list of every one installed."""
    return metadata.packages_distributions()
