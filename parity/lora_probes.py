"""Layers of a side called alone, each with a few drawn inputs, and tensors that are changed in full looked at.

What a layer is called with is exact in every dtype of the model, so that a layer that runs under an autocast, or holds
another dtype than its neighbours, can be asked in its own.
Letters in shapes: N rows of inputs, I inputs (of a convolution with its kernel) and O outputs of the layer, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import LoraError
from parity.execution.shadow import Shadow
from parity.execution.storage import bits
from parity.execution.tap import Inputs
from parity.loaded import LoadedSide
from parity.lora.adapter import LoraAdapter
from parity.lora.effects import probes
from parity.lora.full import Place, places, tensors_of
from parity.lora.layers import Kind, kind_of

ROWS = 4


@dataclass(frozen=True)
class Question:
    """How a layer is asked.

    Args:
        kind: what the layer is.
        width: I.
        kernel: of a convolution: C and the kernel's sizes.
        starts: where in its input the kernel's place begins, by dim, and which output that gives.
        dilation: between the numbers a kernel takes.
        rows: of a table.
    """

    kind: Kind
    width: int
    kernel: tuple[int, ...] = ()
    starts: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    rows: int = 0

    def input(self, x: Tensor) -> Tensor:
        """Return what the layer is called with. Shapes: x [N, I]; result [1, N, I], [N] ids or [N, C, ...]."""
        if self.kind == "embedding":
            return ids(len(x), self.rows).to(x.device)
        if self.kind == "linear":
            return x.unsqueeze(0)
        sizes = zip(self.starts, self.kernel[1:], self.dilation, strict=True)
        ends = [start + (k - 1) * d + 1 for (start, _), k, d in sizes]
        out = x.new_zeros(len(x), self.kernel[0], *ends)
        place = out
        for dim, ((start, _), d) in enumerate(zip(self.starts, self.dilation, strict=True), start=2):
            place = place.transpose(0, dim)[start::d].transpose(0, dim)
        place.copy_(x.reshape(len(x), *self.kernel))
        return out

    def answer(self, value: Tensor) -> Tensor:
        """Return what the weight made of each row. Shapes: to [N, O]."""
        if self.kind == "convolution":
            for _, at in self.starts:
                value = value.select(2, at)
            return value
        return value.reshape(-1, value.shape[-1])


def ids(count: int, rows: int) -> Tensor:
    """Return rows of a table that are asked for. Shapes: [N]."""
    return torch.arange(count) * 7 % rows


class LayerProbes:
    """Asks layers of a side; those that cannot be called alone are in `left_out`, with why.

    Args:
        side: the loaded model, without the LoRA.
        adapter: named as the side's modules.
        inputs: what surrounds a call may ask for.
    """

    def __init__(self, side: LoadedSide, adapter: LoraAdapter, inputs: Inputs) -> None:
        self.side, self._inputs = side, inputs
        self.left_out: dict[str, str] = {}
        self.places = places(side.model, adapter)
        self.questions = dict(self._questions(adapter))
        self.tensors = [name for name, place in self.places.items() if place.path not in self.questions or _own(place)]
        dtypes = list(_dtypes(side.model, self.questions))
        own = _dtypes(side.model, [path for path in self.questions if path in adapter.targets])
        self.unit = 2.0 ** (1 - bits(min(own, key=bits, default=torch.float32)))
        widths = [one.width for one in self.questions.values()]
        drawn = probes(widths, ROWS, min(dtypes, key=bits, default=torch.float32), _device(side.model))
        self.exact = {width: x.double() for width, x in drawn.items()}
        self._dtypes: dict[str, torch.dtype] = {}
        self._tried = tuple(dict.fromkeys((*dtypes, torch.float32, torch.bfloat16, torch.float16)))

    def forget(self, paths: Iterable[str]) -> None:
        """Ask these no more."""
        for path in paths:
            self.questions.pop(path, None)

    def ask(self) -> dict[str, Tensor]:
        """Call every layer alone, and look at every tensor. Shapes: layers [N, O], tensors [1, numbers]."""
        return {**self._ask_layers(), **self._look_at_tensors()}

    def _look_at_tensors(self) -> dict[str, Tensor]:
        held = tensors_of(self.side.model, self.tensors)
        return {name: self._exact(value).reshape(1, -1) for name, value in held.items()}

    def _exact(self, value: Tensor) -> Tensor:
        """Return a tensor in float64: the finer value it is rounded from, where it still is."""
        stored = value.detach().double()
        finer = self.side.finer.get(id(value), stored).double()
        unit = 4 * 2.0 ** -bits(value.dtype)
        return finer if bool(((finer - stored).abs() <= unit * finer.abs() + 1e-30).all()) else stored

    def _ask_layers(self) -> dict[str, Tensor]:
        if not self.questions:
            return {}
        shadow = self.side.shadow(Shadow, {"probes": list(self.exact.values())})
        runner = replace(self.side.runner(()), call=self._call, output=lambda out: out)
        self._widths: dict[str, int] = {}
        high = runner.run(self._inputs, shadow=shadow).values["final_output"].high
        assert high is not None
        parts = high.split([ROWS * width for width in self._widths.values()])
        return {path: part.reshape(ROWS, -1) for path, part in zip(self._widths, parts, strict=True)}

    def _call(self, model: nn.Module, inputs: Inputs) -> Tensor:
        modules, answers = dict(model.named_modules()), []
        for path, question in self.questions.items():
            try:
                value = self._called(path, modules[path], question)
            except Exception as error:  # whatever a layer says that needs more than its input
                self.left_out[path] = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
                continue
            self._widths[path] = value.shape[-1]
            answers.append(value.reshape(-1))
        if not answers:
            path, why = next(iter(self.left_out.items()))
            raise LoraError(f"no layer can be called alone; {path}: {why}")
        return torch.cat([value.to(torch.float64) for value in answers])

    def _called(self, path: str, layer: nn.Module, question: Question) -> Tensor:
        """Call a layer in the dtype that it takes: its weight's, or the one an autocast would have given it."""
        given = question.input(self.exact[question.width])
        known = self._dtypes.get(path, _dtype(layer))
        failed: Exception | None = None
        for dtype in dict.fromkeys((*(() if known is None else (known,)), *self._tried)):
            try:
                out = layer(given.to(dtype) if given.is_floating_point() else given)
            except RuntimeError as error:
                failed = failed or error
                continue
            self._dtypes[path] = dtype
            return question.answer(out[0] if isinstance(out, tuple) else out)
        assert failed is not None
        raise failed

    def _questions(self, adapter: LoraAdapter) -> Iterator[tuple[str, Question]]:
        """Yield the layers to ask: those of the adapter, and the linear ones it must leave alone."""
        full = {place.path for place in self.places.values() if not _own(place)}
        named = {*adapter.targets, *full}
        for path, module in self.side.model.named_modules():
            width = _width(module)
            if path in adapter.targets or path in full:
                target = adapter.targets.get(path)
                found = _question(module, width if target is None else target.A.shape[1])
                if found is None:
                    self.left_out[path] = "a convolution with groups, or with padding by name"
                else:
                    yield path, found
            elif width is not None and not any(path.startswith(f"{one}.") for one in named):
                yield path, Question("linear", width)


def _own(place: Place) -> bool:
    """Whether a change in full is seen in the tensor alone: no layer can be asked for it."""
    return place.kind is None


def _question(layer: Any, width: int | None) -> Question | None:
    """Return how a layer is asked; None for a convolution whose place in its input cannot be told."""
    kind = kind_of(layer) or "linear"
    if kind == "embedding":
        return Question(kind, layer.weight.shape[1] if width is None else width, rows=layer.weight.shape[0])
    if kind == "linear":
        return Question(kind, int(width or layer.in_features))
    kernel = tuple(layer.weight.shape[1:])
    groups, stride, dilation = layer.groups, layer.stride, tuple(layer.dilation)
    if groups != 1 or isinstance(layer.padding, str):
        return None
    starts = tuple((-(-p // s) * s - p, -(-p // s)) for p, s in zip(layer.padding, stride, strict=True))
    return Question(kind, int(torch.Size(kernel).numel()), kernel, starts, dilation)


def _width(module: nn.Module) -> int | None:
    weight = getattr(module, "weight", None)
    sizes: Iterator[Any] = (getattr(module, name, None) for name in ("in_features", "input_size"))
    width = next((size for size in sizes if isinstance(size, int)), None)
    whole = isinstance(weight, Tensor) and weight.ndim == 2 and width == weight.shape[1]
    return width if whole and not list(module.children()) else None


def _dtype(layer: nn.Module) -> torch.dtype | None:
    """Return the dtype of a layer's weight where that can be multiplied with."""
    weight = getattr(layer, "weight", None)
    floats = isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1
    return weight.dtype if floats and isinstance(weight, Tensor) else None


def _dtypes(model: nn.Module, paths: Iterable[str]) -> Iterator[torch.dtype]:
    modules = dict(model.named_modules())
    held = (_dtype(modules[path]) for path in paths if path in modules)
    yield from dict.fromkeys(dtype for dtype in held if dtype is not None)


def _device(model: nn.Module) -> torch.device:
    return next(iter((*model.parameters(), *model.buffers()))).device
