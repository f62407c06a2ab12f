"""Hooks that show the value at each tap of one side while it runs, and may replace it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from parity.errors import TapError, UsageError
from parity.execution.tap import Point, Tap

Seen = Callable[[Tap, Tensor, int], "Tensor | None"]
"""Called with the tap, its value on this side and the number of the call; returns what replaces it, or None."""


@dataclass
class TapHooks:
    """Attach the taps of one side to a model.

    Args:
        model: the side's model.
        taps: the pair's taps, in execution order.
        side: "reference" or "native".
        seen: called at each tap.

    Raises:
        TapError: a module path does not exist, an element is not there, or an "only" call happens twice.
    """

    model: nn.Module
    taps: Sequence[Tap]
    side: str
    seen: Seen
    quiet: bool = False
    """While set, nothing is seen: of calls before the one that counts."""

    @contextlib.contextmanager
    def attached(self) -> Iterator[TapHooks]:
        """Hook the model while the context is open."""
        self.calls: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            for tap in self.taps:
                point = self.point(tap)
                if point is not None and tap.name != "final_output":
                    stack.enter_context(self._hooked(tap, point))
            yield self

    def point(self, tap: Tap) -> Point | None:
        """Return where this side has the tap."""
        found: Point | None = getattr(tap, self.side)
        return found

    def _hooked(self, tap: Tap, point: Point) -> contextlib.AbstractContextManager[Any]:
        if point.function is not None:
            return _patched(point.function, partial(self._result, tap, point))
        module = module_at(self.model, point.module or "", self.side, tap.name)
        if point.at == "input":
            handle = module.register_forward_pre_hook(partial(self._before, tap, point), with_kwargs=True)
        else:
            handle = module.register_forward_hook(lambda m, a, out: self._result(tap, point, out))
        return contextlib.closing(_Removable(handle))

    def _before(self, tap: Tap, point: Point, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = (point.element or "0").split(".")
        held: Any = args if path[0].isdigit() else kwargs
        changed = self._at(tap, point, held, path)
        if changed is held:
            return None
        return (changed, kwargs) if held is args else (args, changed)

    def _result(self, tap: Tap, point: Point, out: Any) -> Any:
        return self._at(tap, point, out, point.element.split(".") if point.element else [])

    def _at(self, tap: Tap, point: Point, held: Any, path: list[str]) -> Any:
        if self.quiet:
            return held
        number = self.calls.get(tap.name, 0)
        self.calls[tap.name] = number + 1
        if isinstance(point.call, int) and number != point.call:
            return held
        if point.call == "only" and number:
            raise TapError(
                f"tap {tap.name}: {self.side} module {point.path!r} is called more than once in a forward\n"
                'say which: Point(call="all") for all calls along dim 0, or the number of the call'
            )
        value = element_of(held, path, f"tap {tap.name}: {self.side} {point.path}")
        replacement = self.seen(tap, value, 0 if isinstance(point.call, int) else number)
        return held if replacement is None else with_element(held, path, replacement)


class _Removable:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def close(self) -> None:
        self._handle.remove()


def module_at(model: nn.Module, path: str, side: str, tap: str) -> nn.Module:
    """Return the submodule at a dotted path.

    Raises:
        TapError: there is none; the message names the nearest path that exists.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in model.named_modules()]
        raise TapError(f"tap {tap}: {UsageError.unknown(f'{side} module', path, _near(path, names))}") from None


def _near(path: str, names: list[str]) -> list[str]:
    """Keep the names that could have been meant: those of the same depth first."""
    same = [n for n in names if n.count(".") == path.count(".")]
    return same or names


def element_of(held: Any, path: Sequence[str], where: str) -> Tensor:
    """Follow a path of numbers, keys and attributes to a tensor.

    Raises:
        TapError: an element is not there, or what is found is no tensor.
    """
    for step in path:
        try:
            if isinstance(held, Mapping):
                held = held[step]
            elif step.lstrip("-").isdigit():
                held = held[int(step)]
            else:
                held = getattr(held, step)
        except (KeyError, IndexError, AttributeError, TypeError):
            raise TapError(f"{where}: there is no element {step!r} in a {_shape_of(held)}") from None
    if not isinstance(held, Tensor):
        raise TapError(f"{where}: found a {_shape_of(held)}, not a tensor\nname the element: Point(element=...)")
    return held


def _shape_of(held: Any) -> str:
    if isinstance(held, (tuple, list)):
        return f"{type(held).__name__} of {len(held)}: " + ", ".join(type(h).__name__ for h in held[:6])
    if isinstance(held, Mapping):
        return f"mapping with keys {', '.join(map(str, list(held)[:8]))}"
    return type(held).__name__


def with_element(held: Any, path: Sequence[str], value: Tensor) -> Any:
    """Return a copy of a structure with one element replaced."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(held, Mapping):
        changed = {**held, step: with_element(held[step], rest, value)}
        return changed if type(held) is dict else type(held)(**changed)
    if isinstance(held, (tuple, list)):
        items = list(held)
        items[int(step)] = with_element(items[int(step)], rest, value)
        if hasattr(held, "_fields"):
            return type(held)(*items)
        return type(held)(items)
    if dataclasses.is_dataclass(held) and not isinstance(held, type):
        return dataclasses.replace(held, **{step: with_element(getattr(held, step), rest, value)})
    raise TapError(f"cannot replace element {step!r} of a {type(held).__name__}")


@contextlib.contextmanager
def _patched(where: str, result: Callable[[Any], Any]) -> Iterator[None]:
    """Wrap a function, named "package.module:qualified.name", so that its result is seen.

    Methods, static and class methods are wrapped as what they are; an inherited one is put on the class named and taken
    off again.
    """
    owner, name = _function_owner(where)
    held = inspect.getattr_static(owner, name)
    own = name in vars(owner)
    kind = type(held) if isinstance(held, (staticmethod, classmethod)) else None
    inner: Callable[..., Any] = held.__func__ if kind is not None else held

    @functools.wraps(inner)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return result(inner(*args, **kwargs))

    setattr(owner, name, wrapped if kind is None else kind(wrapped))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, held)
        else:
            delattr(owner, name)


def _function_owner(where: str) -> tuple[Any, str]:
    """Return what holds a function, and its name there.

    Raises:
        TapError: the module does not import, or there is no such function in it.
    """
    module_name, _, path = where.partition(":")
    try:
        owner: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise TapError(f"function tap {where!r}: {error}") from error
    *outer, last = path.split(".")
    for name in (*outer, last):
        if not hasattr(owner, name):
            raise TapError(f"there is no function {path!r} in {module_name}: {name!r} is missing")
        owner = getattr(owner, name) if name is not last else owner
    return owner, last
