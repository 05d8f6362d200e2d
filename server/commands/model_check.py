"""What can be wrong with --model and --draft-model, said before anything is loaded."""

from engine.checkpoint import locate_checkpoint
from server.settings import ModelSettings


def check_models(settings: ModelSettings) -> None:
    """Raise CheckpointError for a model that does not exist or is no checkpoint; imports no torch."""
    locate_checkpoint(settings.model)
    if settings.draft_model is not None:
        locate_checkpoint(settings.draft_model)
