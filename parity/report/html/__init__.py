"""A run as one HTML file that needs nothing else: no server, no request, no other file."""

from parity.report.html.page import check_extra, render_html

__all__ = ["check_extra", "render_html"]
