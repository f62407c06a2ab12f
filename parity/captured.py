"""Inputs from a real pipeline: what enters the reference's `forward` while the pipeline runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from parity.errors import ModelFailed, UsageError
from parity.loaded import load_side
from parity.pair import Build, ModelPair


class _Seen(BaseException):
    """Ends the pipeline once its model was called; no `except Exception` of the pipeline takes it."""


def captured_inputs(pair: ModelPair, build: Build, pipeline: Callable[[], Any]) -> dict[str, Any]:
    """Run a pipeline until it calls a model of the reference's class, and return the pair's inputs of that call.

    Args:
        pair: its reference says by `from_call` what the arguments of `forward` are in the pair's inputs.
        build: what the pair builds; only the class of its reference counts here.
        pipeline: runs the pipeline.

    Raises:
        UsageError: the reference has no `from_call`, or the pipeline never calls such a model.
        ModelFailed: the pipeline raised before.
    """
    translate = pair.reference.from_call
    if translate is None:
        raise UsageError(
            f"{pair.name}: the reference has no `from_call`, which reads the pair's inputs off a call of `forward`\n"
            "give the reference's Side a function from the arguments of forward, by name, to the pair's inputs"
        )
    with ExitStack() as stack:
        stack.enter_context(pair.reference.around_session())
        cls = type(load_side("reference", pair.reference, build).model)
        arguments = _first_call(cls, pipeline)
    return {name: _kept(value) for name, value in translate(arguments).items()}


def _first_call(cls: type[nn.Module], pipeline: Callable[[], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    forward = cls.forward

    def seen(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(forward).bind(self, *args, **kwargs)
        bound.apply_defaults()
        found.update(list(bound.arguments.items())[1:])
        raise _Seen

    cls.forward = seen
    try:
        pipeline()
    except _Seen:
        return found
    except Exception as error:
        raise ModelFailed(f"the pipeline raised before it called a {cls.__name__}: {error}") from error
    finally:
        cls.forward = forward
    raise UsageError(f"the pipeline ended without calling a {cls.__name__}: does it use another class or process?")


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


