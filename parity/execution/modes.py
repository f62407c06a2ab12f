"""Keep torch's compiler out of passes, without importing it: that takes a second and a hundred megabytes.

Whatever compiles imports it, `torch.compile` when it is called; until then there is nothing to keep out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_COMPILER = "torch._dynamo"


class Mode(TorchDispatchMode):
    """A dispatch mode whose own code is never compiled.

    torch sees to that with a decorator that imports the compiler at the first op. Here it is put on once there is one.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        if "__torch_dispatch__" in vars(cls):
            cls.__torch_dispatch__ = _never_compiled(vars(cls)["__torch_dispatch__"])  # type: ignore[method-assign]


def _never_compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    disabled: list[Callable[..., Any]] = []

    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        if _COMPILER not in sys.modules:
            return method(*args, **kwargs)
        if not disabled:
            disable = getattr(sys.modules[_COMPILER], "disable", None)
            if disable is None:  # it is being imported now
                return method(*args, **kwargs)
            disabled.append(disable(method, recursive=True))
        return disabled[0](*args, **kwargs)

    return called


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules eagerly while the context is open: inductor's kernels cannot be shadowed.

    A stance holds from the moment it is made: what is compiled for the first time in the context (flex attention) is
    met by one that is made when the compiler comes.
    """
    if not hasattr(torch.compiler, "set_stance"):
        yield
        return
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(torch.compiler.set_stance("force_eager"))

        if _COMPILER in sys.modules:
            begin()
        else:
            stack.enter_context(_once_imported(begin))
        yield


@contextmanager
def _once_imported(then: Callable[[], None]) -> Iterator[None]:
    finder = _Finder(then)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    """Calls a function once the compiler's module has run."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the compiler as ever, for a loader that tells."""
        found = PathFinder.find_spec(name, path, target) if name == _COMPILER else None
        if found is None or found.loader is None:
            return None
        run = found.loader.exec_module

        def told(module: ModuleType) -> None:
            run(module)
            self._then()

        vars(found.loader)["exec_module"] = told
        return found
