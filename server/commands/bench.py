"""`draftline bench`: how fast a model runs on this machine."""

from collections.abc import Sequence


def bench(arguments: Sequence[str]) -> int:
    """Measure and print a table."""
    from server.commands.model_check import check_models
    from server.settings import parse_settings
    from server.terminal.settings import BenchSettings

    settings = parse_settings(
        BenchSettings, [flag for flag in arguments if flag != "--json"], program="draftline bench"
    )
    check_models(settings)
    return 0
