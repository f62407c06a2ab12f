"""Where the scaling comes from: a tensor, the header, a sidecar, an argument, or nowhere.

The order is that of how near to the weights it stands. "assumed" is alpha = r, which is the convention, and wrong
wherever an author lost alpha on the way.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from parity.errors import LoraFileError
from parity.lora.formats.file import Given, LoraFile

HEADER_ALPHAS = ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha")
METADATA = "lora_adapter_metadata"


class Scale(NamedTuple):
    """Alpha, the factor on B @ A and where it was found."""

    lora_alpha: float
    scaling: float
    origin: str


@dataclass(frozen=True)
class Config:
    """The settings of an adapter as PEFT has them, from a sidecar or a header."""

    values: Mapping[str, Any]
    origin: str

    def r(self, module: str) -> int | None:
        """Return the rank declared for a module.

        Raises:
            LoraFileError: it is no number.
        """
        found = _by_pattern(self.values.get("rank_pattern"), module, self.values.get("r"))
        return None if found is None else int(number(found, f"r in the {self.origin}"))

    def scale(self, module: str, r: int) -> Scale | None:
        """Return the scaling declared for a module of rank r.

        Raises:
            LoraFileError: alpha is no number.
        """
        plain = self.values.get("lora_alpha", self.values.get("alpha"))  # the second for products of factors
        alpha = _by_pattern(self.values.get("alpha_pattern"), module, plain)
        if alpha is None:
            return None
        alpha = number(alpha, f"lora_alpha in the {self.origin}")
        return Scale(alpha, alpha / (math.sqrt(r) if self.values.get("use_rslora") else r), self.origin)


def config_of(file: LoraFile, prefix: str) -> Config | None:
    """Return the header's settings for a component, or those of the sidecar.

    Raises:
        LoraFileError: the header's settings are no JSON.
    """
    if METADATA in file.header:
        try:
            values = json.loads(file.header[METADATA])
        except ValueError as error:
            raise LoraFileError("bad_header", f"{METADATA} in the header is no JSON: {error}") from error
        if not isinstance(values, dict):
            raise LoraFileError("bad_header", f"{METADATA} in the header is no object of settings")
        own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        return Config(own or values, "header")
    return Config(file.sidecar, "sidecar") if file.sidecar is not None else None


def header_alpha(file: LoraFile) -> float | None:
    """Return an alpha that stands in the header in plain words."""
    found = next((file.header[name] for name in HEADER_ALPHAS if file.header.get(name) not in (None, "", "None")), None)
    return None if found is None else number(found, "alpha in the header")


def from_tensor(alpha: float, r: int, zero_is_rank: bool) -> Scale:
    """Return the scaling an alpha stored as a tensor means."""
    return Scale(alpha, 1.0 if alpha == 0 and zero_is_rank else alpha / r, "tensor")


def otherwise(file: LoraFile, config: Config | None, module: str, r: int) -> Scale:
    """Return the scaling where the file has no tensor for it."""
    if config is not None and (found := config.scale(module, r)) is not None:
        return found
    if (alpha := header_alpha(file)) is not None:
        return Scale(alpha, alpha / r, "header")
    return _given(file.given, r)


def _given(given: Given, r: int) -> Scale:
    if given.lora_alpha is None:
        return Scale(float(r), 1.0, "assumed")
    return Scale(given.lora_alpha, given.lora_alpha / r, "argument")


def number(value: object, what: str) -> float:
    """Return a finite float.

    Raises:
        LoraFileError: it is none.
    """
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise LoraFileError("alpha_not_a_number", f"{what} is {str(value)[:40]!r}, a number is needed") from error
    if not math.isfinite(found):
        raise LoraFileError("not_finite", f"{what} is {found}, it must be finite")
    return found


def _by_pattern(patterns: object, module: str, default: Any) -> Any:
    """Return the entry whose pattern fits the end of the module's path, as PEFT matches them."""
    if isinstance(patterns, Mapping):
        for pattern, value in patterns.items():
            if _fits(str(pattern), module):
                return value
    return default


def _fits(pattern: str, module: str) -> bool:
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return False
