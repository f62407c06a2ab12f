"""The page: one template, one style, one script, and Plotly, all inside the file.

A content security policy allows the two scripts by their digests and nothing else, so that markup that came through
somewhere could not run, load or send anything.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import math
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import parity
from parity.errors import RecordError, UsageError
from parity.report.html.packed import as_script, details_of, index_of, packed
from parity.report.html.view import view
from parity.report.shape import well_formed

_SCRIPTS = ("page.js", "words.js", "heatmap.js", "plots.js", "case.js", "main.js")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d)?\+00:00")
_NEEDED = ("jinja2", "plotly")


def render_html(
    record: Mapping[str, Any], earlier: Mapping[str, Any] | None = None, files: tuple[str, str] = ("record", "earlier")
) -> str:
    """Render a run record as one HTML file.

    Args:
        record: as it was read.
        earlier: the record of an earlier run to compare it with.
        files: what the two are called in errors.

    Raises:
        UsageError: Jinja2 or Plotly is not installed.
        RecordError: a record is not one of this project; names the field.
    """
    environment, plotly = _environment(), _plotly()
    found, before = well_formed(record, files[0]), None if earlier is None else well_formed(earlier, files[1])
    if not found["cases"]:
        raise RecordError(f"{files[0]} holds no case: there is nothing to report\nrun again")
    style, script = _joined(environment, ("style.css",)), f"(() => {{\n{_joined(environment, _SCRIPTS)}\n}})();"
    text: str = environment.get_template("report.html").render(
        **view(found, before),
        version=parity.__version__,
        style=_safe(style),
        script=_safe(script),
        policy=_policy(script, plotly[0]),
        index=_safe(as_script(index_of(found))),
        details=details_of(found),
        plotly=plotly[1],
    )
    return text


def check_extra() -> None:
    """Check that what the report needs is installed: before a long run, not behind it.

    Raises:
        UsageError: it is not.
    """
    for name in _NEEDED:
        _imported(name)


@cache  # the largest script is the same in every report
def _policy(*scripts: str) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Any:
    """Return the templates, every value of which is escaped.

    Raises:
        UsageError: Jinja2 is not installed.
    """
    jinja2 = _imported("jinja2")
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("parity.report.html", "templates"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    found.filters.update(short=short, day=day)
    return found


@cache
def _plotly() -> tuple[str, str]:
    """Return Plotly's script, and the same compressed: it is unpacked when the first curve is drawn.

    Raises:
        UsageError: Plotly is not installed.
    """
    _imported("plotly")
    script: str = importlib.import_module("plotly.offline").get_plotlyjs()
    return script, packed(script)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"the HTML report needs {' and '.join(_NEEDED)}: {name} is not installed"
        raise UsageError(f"{text}\ninstall them: pip install 'dit-parity[report]'") from error


def _joined(environment: Any, names: tuple[str, ...]) -> str:
    return "\n".join(environment.loader.get_source(environment, name)[0] for name in names)


def _safe(text: str) -> Any:
    """Mark this package's own text, or JSON without markup, as what need not be escaped."""
    return _imported("markupsafe").Markup(text)


def day(created: str) -> str:
    """Word a time to the minute.

    >>> day("2026-01-31T12:34:56+00:00"), day("long ago")
    ('2026-01-31 12:34 UTC', 'long ago')
    """
    found = _TIME.fullmatch(created)
    return f"{found[1]} {found[2]} UTC" if found else created


def short(value: Any) -> str:
    """Word a number in a few characters.

    >>> short(0.000123), short(12.345), short(float("nan")), short(float("inf"))
    ('1.2e-04', '12.3', '-', 'inf')
    """
    if value is None or value != value:
        return "-"
    if not isinstance(value, int | float) or not math.isfinite(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.1e}"
