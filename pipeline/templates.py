"""Jinja templates, which stand beside the modules that fill them."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment(package: str, autoescape: bool = False) -> Environment:
    """What renders the templates of a package; a name without a value is an error.

    Args:
      package: the package whose folder holds the templates, such as "launch".
      autoescape: whether values are escaped, as HTML needs.
    """
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
