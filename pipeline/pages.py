"""HTML pages: one file each, no script, no network, light and dark by the reader's system."""

from __future__ import annotations

from typing import Any

from pipeline.charts import SERIES_COLORS


def render_page(package: str, folder: str, template: str, **values: Any) -> str:
    """Fill in a template of ``folder`` in ``package``.

    Values are escaped. Templates may include ``page.css.j2``, the style that all pages share, and
    have ``series_colors``, the number of its colours for series.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, folder), jinja2.PackageLoader("pipeline", "data")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(series_colors=SERIES_COLORS, **values)
