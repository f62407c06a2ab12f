"""Ids, `-k`, and that collection builds no model."""

from __future__ import annotations

from tests.plugin.conftest import Project


def test_x(project: Project) -> None:
    project.pair("healthy")
    run = project.run("-v")
    print(run.text)
    assert 0
