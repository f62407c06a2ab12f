"""Size and opening time of the report of a record as large as a real model's, in the browser of this machine.

make bench-report     (writes benchmarks/results/report.md)
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from fixtures.browser import browser_page
from fixtures.large_record import large_record
from parity.io.scratch import scratch_folder
from parity.report.html import render_html

OPENINGS = 5
RESULT = Path(__file__).resolve().parent / "results" / "report.md"
HEAD = """# The report of a large run

48 blocks of 9 taps in six states, as a model of 14 billion parameters gives them: what writing the page takes, how
large it is, and how long a headless chromium needs from asking for the file to a heat map that takes keys (the median
of five). Made by `python benchmarks/bench_report.py`.

| cases | failing | written in | size | opens in |
|---|---|---|---|---|"""


def measure(failing: float) -> str:
    """Return a row: what was measured for a share of failing cases."""
    record = large_record(failing=failing)
    started = time.perf_counter()
    text = render_html(record)
    rendered = time.perf_counter() - started
    with scratch_folder() as folder:
        path = Path(folder) / "report.html"
        path.write_text(text, encoding="utf-8")
        opened = median(opening(path) for _ in range(OPENINGS))
    size = len(text.encode()) / 1e6
    return f"| {len(record['cases']):,} | {failing:.0%} | {rendered:.2f} s | {size:.1f} MB | {opened:.2f} s |"


def opening(path: Path) -> float:
    """Return the seconds from asking for the file to a drawn heat map that takes keys."""
    with browser_page() as page:
        started = time.perf_counter()
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_selector("#map td[tabindex='0']")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        return time.perf_counter() - started


def main() -> None:
    """Measure, print and write the table."""
    text = "\n".join([HEAD, *(measure(share) for share in (0.0, 0.3, 1.0))]) + "\n"
    print(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
