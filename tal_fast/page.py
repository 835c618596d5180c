# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML pages: a template of the package, with the look that all pages share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import resources
from typing import Any

from tal_fast.errors import MissingExtraError

__all__ = ["Page"]


class Page:
    """``report.html`` of a package, ready to be filled.

    It may include other templates of its package. It writes ``{{ style }}`` where the shared style
    sheet (``page.css``) belongs, before its own rules. What it names and does not get is an error.

    Args:
        package: dotted name of the package, as in ``"tal_fast.study"``.
        purpose: what the page is, for the error.
        filters: further filters of the template, by name.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """

    def __init__(
        self, package: str, purpose: str, filters: dict[str, Callable[..., Any]] | None = None
    ) -> None:
        try:
            import jinja2  # noqa: F401  (of the template)
            import markupsafe
        except ImportError as error:
            raise MissingExtraError("jinja2", "report", purpose) from error

        #: Marks text that is HTML or SVG already; all else is escaped.
        self.markup: Callable[[str], Any] = markupsafe.Markup
        self._template = _template(package, tuple((filters or {}).items()))

    def render(self, **values: Any) -> str:
        """Returns the page with these values."""
        style = resources.files("tal_fast").joinpath("page.css").read_text("utf-8")
        text: str = self._template.render(style=self.markup(style), **values)
        # Names may hold halves of UTF-16 pairs, as JSON does ("\\ud800"), which UTF-8 cannot.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.lru_cache(maxsize=8)
def _template(package: str, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Any:
    """Compiles a template, which takes longer than to fill it."""
    import jinja2

    def read(name: str) -> str:
        return resources.files(package).joinpath(name).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template("report.html")
