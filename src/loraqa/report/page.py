"""Pages from templates: one HTML file, without references to other files."""

from typing import Any


def rendered(package: str, **values: Any) -> str:
    """Return the `page.html` of a package with these values; all texts are escaped.

    In the page the filter `svg` turns a matplotlib figure into markup.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from loraqa.report.plots import to_svg

    templates = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters["svg"] = lambda figure: Markup(to_svg(figure))
    return templates.get_template("page.html").render(values)
