"""The version of draftline that runs."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version of the installed distribution, "0+unknown" in a bare source tree."""
    try:
        return version("draftline")
    except PackageNotFoundError:
        return "0+unknown"
