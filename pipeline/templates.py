"""Jinja templates, which are stored beside the modules that render them."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment(package: str, autoescape: bool = False) -> Environment:
    """Creates the environment for a package's templates; an undefined name in one is an error.

    Args:
      package: name of the package whose folder holds the templates, such as "launch".
      autoescape: whether to escape values, which HTML requires.
    """
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
