"""Download pinned wheels and unpack them into .third_party/<name>/, without installing them or their dependencies.

Usage: python scripts/unpack_third_party.py [name ...]     (all of requirements/third-party.txt by default)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "requirements" / "third-party.txt"
TARGET = ROOT / ".third_party"


def main(names: list[str]) -> int:
    """Unpack the named distributions; return an exit code."""
    pins = read_pins(PINS.read_text(encoding="utf-8"))
    unknown = sorted(set(names) - set(pins))
    if unknown:
        print(f"not pinned in {PINS.relative_to(ROOT)}: {', '.join(unknown)}\nvalid: {', '.join(pins)}")
        return 2
    for name in names or pins:
        print(f"{name} {pins[name]}: {fetch(name, pins[name], TARGET / name)}")
    return 0


def read_pins(text: str) -> dict[str, str]:
    """Return version by name of lines `name==version`.

    >>> read_pins("wan22==2.2.11  # the original")
    {'wan22': '2.2.11'}
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==", 1) for line in lines if line)


def fetch(name: str, version: str, target: Path) -> str:
    """Bring one distribution to `target`; return what was done, in words."""
    if (target / f"{name}-{version}.dist-info").is_dir():
        return "already there"
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "unpacked"
        unzip(download(name, version, Path(scratch)), unpacked)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, target)
    return f"unpacked into {target.relative_to(ROOT)}"


def download(name: str, version: str, folder: Path) -> Path:
    """Return the wheel pip downloaded into a folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*pip, f"{name}=={version}", "--dest", str(folder)], check=True)
    return next(folder.glob("*.whl"))


def unzip(wheel: Path, target: Path) -> None:
    """Unpack a wheel.

    Raises:
        ValueError: a member would land outside the target.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if not (target / member).resolve().is_relative_to(target.resolve()):
                raise ValueError(f"{wheel.name} holds {member!r}, which leads outside the folder it is unpacked into")
        archive.extractall(target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
