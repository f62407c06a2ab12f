"""xlabs: `double_blocks.0.processor.qkv_lora1.down.weight`; recognised and refused."""

from __future__ import annotations

from parity.lora.formats.file import Dialect, LoraFile
from parity.lora.loaded import LoadedLora
from parity.lora.problems import error


def matches(file: LoraFile) -> bool:
    """Whether factors hang on an attention's processor."""
    return any(key.role == "xlabs" for key in file.keys)


def read(file: LoraFile) -> LoadedLora:
    """Say that it is not read."""
    text = "this spelling (processor.qkv_lora) is known but not read; convert it with the tool it was made for"
    states = {key.key: "unsupported" if key.role == "xlabs" else "unexpected" for key in file.keys}
    return LoadedLora(DIALECT.name, "", {}, states, (error("unsupported_dialect", text),))  # type: ignore[arg-type]


DIALECT = Dialect("xlabs", "<block>.processor.qkv_lora1.down.weight", "none", matches, read)
