"""Options, and what they choose: pairs, settings, the words that repeat them."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from parity.errors import UsageError
from parity.space import Drawn, parse_drawn

if TYPE_CHECKING:  # torch comes with these; see the package
    import torch

    from parity.engine import Settings
    from parity.pair import ModelPair
    from parity.references import ReferenceSources

_DTYPES = ("bfloat16", "float16", "float32")
_SHADOWS = ("float32", "float64")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    number.__name__ = f"number of at least {least}"
    return number


_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def _bytes(text: str) -> int | None:
    """Return a size in bytes; None is any size."""
    if text == "none":
        return None
    number, unit = text[:-2], text[-2:]
    if unit not in _UNITS or not 0 <= float(number) < 1e6:
        raise ValueError
    return int(float(number) * _UNITS[unit])


_bytes.__name__ = "size (500MB, 20GB, none)"


_OPTIONS: dict[str, dict[str, Any]] = {
    "--parity-pairs": {"action": "append", "default": [], "metavar": "DIR", "help": "folders of pair files"},
    "--parity-pair": {"action": "append", "default": [], "metavar": "NAME", "help": "only these pairs"},
    "--parity-require": {
        "action": "append", "default": [], "metavar": "NAME", "help": "a skip of this pair is a failure",
    },
    "--parity-dtype": {"choices": _DTYPES, "default": None, "help": "storage dtype (default: the pair's)"},
    "--parity-size": {"default": None, "metavar": "NAME", "help": "size of the models (default: the pair's first)"},
    "--parity-device": {"default": "auto", "metavar": "DEVICE", "help": "auto, cpu, cuda, cuda:1"},
    "--parity-seed": {"type": _at_least(0), "default": 0, "help": "seed of the first draw"},
    "--parity-draws": {
        "type": _at_least(1), "default": None, "help": "inputs pooled per case (default: the pair's)",
    },
    "--parity-twins": {"type": _at_least(1), "default": 3, "help": "lattice twins a draw (default 3)"},
    "--parity-shadow-dtype": {"choices": _SHADOWS, "default": "float64", "help": "dtype of the shadow"},
    "--parity-examples": {"type": _at_least(1), "default": 6, "help": "drawn inputs a pair and LoRA state (default 6)"},
    "--parity-profile": {
        "choices": ["ci", "local"], "default": None,
        "help": "ci draws the same inputs each time, local others (default: ci where the environment says CI)",
    },
    "--parity-drawn": {
        "action": "append", "default": [], "metavar": "DRAWN", "help": "only this drawn input, as a failure prints it",
    },
    "--parity-residency": {
        "choices": ["auto", "one", "together"], "default": "auto",
        "help": "models in memory: one at a time (auto: on a GPU), or both together",
    },
    "--parity-cache": {
        "default": ".parity_cache", "metavar": "DIR", "help": "where recorded references are kept, one at a time",
    },
    "--parity-cache-limit": {
        "type": _bytes, "default": "100GB", "metavar": "SIZE",
        "help": "what the cache may hold, 20GB or none for any; what was used longest ago goes (default 100GB)",
    },
    "--parity-reference": {
        "action": "append", "default": [], "metavar": "DIR", "help": "the reference's recording, made elsewhere",
    },
    "--parity-reference-python": {
        "default": None, "metavar": "PYTHON",
        "help": "interpreter a recorded reference lives in, for impacts and nearest variants",
    },
    "--parity-html": {
        "action": "store_true", "default": False, "help": "write the report as HTML beside the record (extra: report)",
    },
    "--parity-baseline": {
        "default": None, "metavar": "FILE", "help": "accepted states: fail on anything new, worse or missing",
    },
    "--parity-require-exact": {
        "action": "store_true", "default": False, "help": "with a baseline: a tap that is no longer bit-exact fails",
    },
    "--parity-report": {"default": "reports", "metavar": "DIR", "help": "where the record is written"},
}  # fmt: skip


_UNTOLD = (
    "--parity-require", "--parity-report", "--parity-html", "--parity-cache", "--parity-cache-limit",
    "--parity-drawn", "--parity-examples", "--parity-profile",
)  # fmt: skip
"""What a rerun of one case does not need; how inputs are drawn is told by the cases that draw."""


def add_options(parser: pytest.Parser) -> None:
    """Add every option and the ini value that names the folders of pair files."""
    group = parser.getgroup("parity", "numerical parity of ported models")
    for flag, how in _OPTIONS.items():
        group.addoption(flag, **how)
    parser.addini("parity_pairs", "folders of pair files", type="paths", default=[])


def chosen_pairs(config: pytest.Config) -> dict[str, ModelPair]:
    """Return the pairs that are asked for, by name.

    Raises:
        UsageError: a name is unknown, or there is no pair.
    """
    from parity.discover import choose, discover

    wanted, required = config.getoption("--parity-pair"), config.getoption("--parity-require")
    folders = [Path(p) for p in config.getoption("--parity-pairs")] or list(config.getini("parity_pairs"))
    pairs = discover(folders, wanted and [*wanted, *required], _warn)
    if not pairs:
        raise UsageError("no pair was found: set `parity_pairs` in the pytest configuration to folders of pair files")
    for name in (*wanted, *required):
        choose(pairs, name)
    left_out = [name for name in required if wanted and name not in wanted]
    if left_out:
        raise UsageError(f"--parity-require {left_out[0]}, but --parity-pair {' '.join(wanted)} leaves it out")
    chosen = {name: pair for name, pair in pairs.items() if not wanted or name in wanted}
    size, sizes = config.getoption("--parity-size"), sorted({s for p in chosen.values() for s in p.sizes})
    if size is not None and size not in sizes:
        raise UsageError.unknown("size", size, sizes)
    return chosen


def _warn(text: str) -> None:
    """Warn of a pair file that hurts no pair which is asked for."""
    warnings.warn(f"\n{text}", stacklevel=2)


def settings_of(config: pytest.Config) -> Settings:
    """Return how the pairs are run.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    from parity.choices import dtype_named
    from parity.engine import Settings
    from parity.run import Options

    option = config.getoption
    drawn_given(config)
    return Settings(
        dtype=dtype_named(option("--parity-dtype")),
        size=option("--parity-size"),
        device=_device(config),
        options=Options(
            seed=option("--parity-seed"),
            draws=option("--parity-draws"),
            twins=option("--parity-twins"),
            shadow_dtype=getattr(torch, option("--parity-shadow-dtype")),
        ),
        sources=_sources(config),
    )


def _sources(config: pytest.Config) -> ReferenceSources:
    """Return how references are had.

    Raises:
        RecordError: a recording is not usable.
        UsageError: there is no such device.
    """
    from parity.propagation import Interpreter, ask
    from parity.references import ReferenceSources, recordings

    option = config.getoption
    residency, python = option("--parity-residency"), option("--parity-reference-python")
    here = Interpreter(python, tuple(Path(p) for p in option("--parity-pairs"))) if python else None
    return ReferenceSources(
        one_resident=residency == "one" or (residency == "auto" and _device(config).type != "cpu"),
        cache=config.rootpath / option("--parity-cache"),
        cache_limit=option("--parity-cache-limit"),
        folders=recordings([Path(folder) for folder in option("--parity-reference")]),
        ask_reference=None if here is None else partial(ask, here),
    )


def drawn_given(config: pytest.Config) -> list[Drawn]:
    """Return the drawn inputs that are asked for.

    Raises:
        UsageError: one is not as a failure prints it.
    """
    return [parse_drawn(text) for text in config.getoption("--parity-drawn")]


def _device(config: pytest.Config) -> torch.device:
    """Return the device; worker N of several takes GPU N."""
    import torch

    from parity.choices import device_named

    device = device_named(config.getoption("--parity-device"))
    worker = getattr(config, "workerinput", {}).get("workerid", "")
    if config.getoption("--parity-device") == "auto" and device.type == "cuda" and worker:
        return torch.device("cuda", int(worker.removeprefix("gw")) % torch.cuda.device_count())
    return device


def _word(flag: str, value: object) -> str:
    return flag if value is True else f"{flag}={shlex.quote(str(value))}"


def given(config: pytest.Config) -> str:
    """Word the options that are not defaults and decide what is run."""
    words = []
    for flag, how in _OPTIONS.items():
        value = config.getoption(flag)
        if value != how["default"] and flag not in _UNTOLD:
            words += [_word(flag, v) for v in (value if isinstance(value, list) else [value])]
    return "".join(f" {word}" for word in words)
