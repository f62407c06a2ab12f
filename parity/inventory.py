"""What pairs there are, and which of their sources are on this machine. Builds no model."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity.discover import choose, discover
from parity.errors import UsageError
from parity.io.config import configured, project_root
from parity.pair import Build, ModelPair, Source


@dataclass(frozen=True)
class Project:
    """The project a command runs in: its root and its pair folders."""

    root: Path
    folders: tuple[Path, ...]

    def pairs(
        self, wanted: Sequence[str] = (), tell: Callable[[str], object] = lambda text: None
    ) -> dict[str, ModelPair]:
        """Import the pair files with the project's own modules importable, as pytest would.

        Args:
            wanted: names of the pairs that are asked for; none for all.
            tell: told of each broken file that hurts none of them.

        Raises:
            UsageError: no folder is named, one does not exist, or a file that may hold what is asked for does not
                import.
        """
        if not self.folders:
            text = "no pair folder is named\nset `parity_pairs` in the pytest configuration, or pass --pairs DIR"
            raise UsageError(text)
        for folder in reversed([self.root, *configured(self.root, "pythonpath")]):
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        return discover(self.folders, wanted, tell)

    def pair(self, name: str, tell: Callable[[str], object]) -> ModelPair:
        """Return a pair by name, whatever is wrong with the files of others.

        Raises:
            UsageError: there is none, or its file does not import.
        """
        return choose(self.pairs([name], tell), name)


def find_project(start: Path, folders: Sequence[Path] = ()) -> Project:
    """Return the project around a folder; given pair folders win over the configured ones."""
    root = project_root(start)
    return Project(root, tuple(folders) or tuple(configured(root, "parity_pairs")))


def describe_pair(pair: ModelPair, root: Path) -> dict[str, Any]:
    """Return what a listing shows of a pair. `missing`: by side, the command that gets its source."""
    build = Build(size=pair.sizes[0], dtype=pair.dtypes[0])
    sides = {"reference": pair.reference, "native": pair.native}
    missing = {name: how_to_get(side.source) for name, side in sides.items() if not is_here(side.source, root)}
    return {
        "pair": pair.name,
        "reference": pair.reference.name,
        "native": pair.native.name,
        "sizes": list(pair.sizes),
        "dtypes": [str(d).removeprefix("torch.") for d in pair.dtypes],
        "taps": len(pair.taps(build)),
        "variants": list(pair.variants),
        "lora": pair.lora is not None,
        "available": not missing,
        "missing": missing,
    }


def is_here(source: Source, root: Path) -> bool:
    """Say whether a source's top-level package lies where the source says: checkout, folder, or installed."""
    if source.bundled:
        return True
    top = source.module.partition(".")[0]
    named = os.environ.get(source.checkout or "", "")
    folders = [Path(named).expanduser()] if named else []
    folders += [root / source.folder] if source.folder else []
    if any((f / top).is_dir() or (f / f"{top}.py").is_file() for f in folders):
        return True
    only_installed = source.folder is None and (source.checkout is None or source.distribution is not None)
    return only_installed and importlib.util.find_spec(top) is not None


def how_to_get(source: Source) -> str:
    """Return the command that gets a source, or what to set where the pair names no command."""
    if source.get:
        return source.get
    if source.checkout:
        return f"export {source.checkout}=PATH_OF_A_CHECKOUT"
    return f"pip install {source.distribution or source.module.partition('.')[0]}"


def render_pairs(described: Sequence[dict[str, Any]]) -> str:
    """Render a listing, three lines a pair and one for each missing source."""
    if not described:
        return "no pair was found: a pair file ends in `PAIR = ModelPair(...)`"
    return "\n".join(line for pair in described for line in _lines(pair))


def _lines(pair: dict[str, Any]) -> list[str]:
    words = [
        f"sizes {', '.join(pair['sizes'])}", ", ".join(pair["dtypes"]), f"{pair['taps']} taps",
        "LoRA off and on" if pair["lora"] else "no LoRA",
    ]  # fmt: skip
    if pair["variants"]:
        words.append(f"further inputs {', '.join(pair['variants'])}")
    return [
        f"{pair['pair']}  {'available' if pair['available'] else 'not available'}",
        f"  {pair['reference']} (reference), {pair['native']} (native)",
        f"  {'; '.join(words)}",
        *(f"  {side} is missing, get it with: {command}" for side, command in pair["missing"].items()),
    ]
