"""Which kvgate this is, as its installation says."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """``0.1.0``, or ``from a source folder`` where nothing is installed."""
    try:
        return version("kvgate")
    except PackageNotFoundError:
        return "from a source folder"
