"""The documentation site: builds with strict links, from this checkout alone, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*(?:src|href)=\"(?:https?:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    around = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT), "no_proxy": "*"}
    done = subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert len(pages) > 20
    assert not [page.name for page, text in pages.items() if LOADED.search(text)]
    assert not [f.name for f in site.rglob("*.css") if re.search(r"url\(\"?https?:", f.read_text(encoding="utf-8"))]


def test_the_reference_is_what_the_docstrings_and_the_help_say(site: Path) -> None:
    pair = (site / "reference" / "pair.html").read_text(encoding="utf-8")
    assert "A reference and a native of one architecture." in pair
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "parity baseline accept" in commands
    assert "The accepted states, made or changed." in commands


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"[\w/-]+\.md", str(yaml.safe_load(text)["nav"])))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages == listed
