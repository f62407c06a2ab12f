"""A side's own way to load a LoRA from a file, so that a pair tests what its users run.

    Side(..., apply_lora=LoraLoader("peft", load=my_pipeline_loads, unload=my_pipeline_unloads))

The pair's LoRA is written to a file of the dialect, in the names the loader takes, and loaded by the side's own code;
what is in the layers then is compared with the file before any forward runs (see `parity.lora_audit`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from parity.errors import LoraError
from parity.io.lora_files import open_lora, write_lora
from parity.io.scratch import scratch_folder
from parity.lora.adapter import LoraAdapter
from parity.lora.conversion import sound, with_changes
from parity.lora.formats import Given, LoraFile, read_lora, writer
from parity.lora.loaded import Factors, LoadedLora, Target

Load = Callable[[nn.Module, Path, str], object]
"""Loads a file into a model under an adapter's name, and switches it on."""


@dataclass
class LoraLoader:
    """Loads a LoRA as the side's users do; goes where `Side.apply_lora` goes.

    Args:
        format: the dialect of the file that is written for it, as `parity lora convert --to` has it.
        load: loads a file under an adapter's name and switches it on.
        unload: takes every adapter off again.
        names: from the side's module paths to those in the file.
        file: the file to load instead of one that is written: what is really shipped.
        activate: switches on exactly these adapters, with a weight each; None: the side takes one at a time.
        delete: takes one adapter off and leaves the others on; needed where several are on at once.
    """

    format: str
    load: Load
    unload: Callable[[nn.Module], object]
    names: Callable[[str], str] = str
    file: Path | None = None
    activate: Callable[[nn.Module, Mapping[str, float]], object] | None = None
    delete: Callable[[nn.Module, str], object] | None = None
    _on: dict[int, list[str]] = field(default_factory=dict, init=False, repr=False)

    @property
    def several(self) -> bool:
        """Whether several adapters can be on at once."""
        return self.activate is not None and self.delete is not None

    @contextmanager
    def __call__(self, model: nn.Module, adapter: LoraAdapter) -> Iterator[None]:
        """Load an adapter, beside those that are on, and take it off at the end.

        Raises:
            LoraError: one is on already and the side takes one at a time; or the dialect cannot hold the adapter.
        """
        on = self._on.setdefault(id(model), [])
        if on and not self.several:
            raise LoraError("an adapter is on already, and this loader takes one at a time: it has no `activate`")
        name = f"parity_{len(on)}" if on else "default"
        with self._loaded(model, adapter, name, first=not on):
            on.append(name)
            try:
                if len(on) > 1 and self.activate is not None:
                    self.activate(model, dict.fromkeys(on, 1.0))
                yield
            finally:
                on.remove(name)
                self._take_off(model, name, on)

    def _take_off(self, model: nn.Module, name: str, left: list[str]) -> None:
        if left and self.delete is not None:
            self.delete(model, name)
            if self.activate is not None:
                self.activate(model, dict.fromkeys(left, 1.0))
        else:
            self._on.pop(id(model), None)
            self.unload(model)

    @contextmanager
    def switch(self, model: nn.Module, adapter: LoraAdapter) -> Iterator[None]:
        """Load another adapter in the place of the one that is on, as a user who switches does."""
        with self._loaded(model, adapter, "switched", first=False):
            if self.activate is not None:
                self.activate(model, {"switched": 1.0})
            yield

    @contextmanager
    def _loaded(self, model: nn.Module, adapter: LoraAdapter, name: str, first: bool) -> Iterator[None]:
        """Load an adapter; the file stays as long as the adapter, since some pipelines read it again."""
        with scratch_folder() as folder:
            own = self.file is not None and first
            path = self.file if own else written_adapter(adapter, self.format, folder, self.names)
            assert path is not None
            self.load(model, path, name)
            yield


def written_adapter(adapter: LoraAdapter, format: str, folder: Path, names: Callable[[str], str] = str) -> Path:
    """Write an adapter to a file of a dialect, under the names a loader takes; return the file.

    Raises:
        UsageError: there is no such dialect, or it is only read.
        LoraFileError: it cannot hold the adapter.
    """
    dialect = writer(format)
    assert dialect.write is not None
    held = dialect.write(loaded_from(adapter, names))
    return write_lora(folder, held.tensors, held.header, held.sidecar, lambda path: None)[0]


def loaded_from(adapter: LoraAdapter, names: Callable[[str], str] = str) -> LoadedLora:
    """Return an adapter as what a file with it would say."""
    targets = {}
    for path, one in adapter.targets.items():
        name, r = names(path), one.rank
        held = {"magnitude": one.magnitude, "diff_b": one.bias}
        extras = {role: partial(_same, value) for role, value in held.items() if value is not None}
        targets[name] = Target(
            name, (one.B.shape[0], one.A.shape[1]), r, one.scaling * r, one.scaling, one.scaling_from,
            partial(Factors, one.A, one.B), extras,
            dtype=one.A.dtype, parameters=one.A.numel() + one.B.numel(), rank=r, embedding=one.embedding,
        )  # fmt: skip
    return LoadedLora("adapter", "", with_changes(targets, adapter.changes, names), {})


def _same(value: Tensor) -> Tensor:
    return value


def adapter_from(path: str | Path, modules: Collection[str] | None = None, **given: Any) -> LoraAdapter:
    """Read a LoRA file as a pair's `lora` needs it.

    Args:
        path: the file, in any dialect.
        modules: of the model it is for, where the file has underscores for dots.
        given: what the file does not say: `lora_alpha`, `adapter`, `prefix`, `r`.

    Raises:
        LoraFileError: the file has an error, or changes more than A and B do.
    """
    opened = open_lora(path)
    lora = read_lora(LoraFile(opened.source, opened.header, opened.sidecar, Given(modules=modules, **given)))
    sound(lora)
    return replace(lora.adapter(), name=Path(path).stem)


__all__ = ["LoraLoader", "adapter_from", "loaded_from", "written_adapter"]
