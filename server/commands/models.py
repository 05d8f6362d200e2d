"""`draftline models`: the models that have a name, and with --verify whether their files are intact."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from server.commands.banner import mebibytes

if TYPE_CHECKING:
    from engine.checkpoint import ModelListing


def models(arguments: Sequence[str]) -> int:
    """Print the named models; return 1 if --verify finds a damaged file."""
    flags = _parser().parse_args(arguments)
    from engine.checkpoint import list_models, verify_models

    verified = dict(verify_models()) if flags.verify else {}
    listings = list_models()
    if flags.json:
        sys.stdout.write(json.dumps([_members(model, verified) for model in listings], indent=2) + "\n")
    elif sys.stdout.isatty():
        _print_for_people(listings, verified)
    else:
        for model in listings:
            sys.stdout.write("\t".join(str(value) for value in _members(model, verified).values()) + "\n")
    return 0 if all(verified.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "draftline models",
        description="List the models that have a name. Not to a terminal: a line for each, with tabs between "
        "name, bytes, licence, state, path and description.",
    )
    parser.add_argument(
        "--verify", action="store_true", help="hash the files again that are there; 1 if one is damaged"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    return parser


def _members(model: "ModelListing", verified: Mapping[str, bool]) -> dict[str, str | int]:
    return {
        "name": model.name,
        "size_bytes": model.num_bytes,
        "licence": model.licence,
        "state": _state(model, verified),
        "path": str(model.path),
        "description": model.description,
    }


def _state(model: "ModelListing", verified: Mapping[str, bool]) -> str:
    if model.name in verified:
        return "intact" if verified[model.name] else "damaged"
    return "cached" if model.is_cached else "not fetched"


_FOR_PEOPLE = {
    "intact": ("intact", "green"),
    "damaged": ("DAMAGED: fetched again when it is next used", "red"),
    "cached": ("on disk", "green"),
    "not fetched": ("not here yet: fetched when it is first used", "yellow"),
}


def _print_for_people(listings: Sequence["ModelListing"], verified: Mapping[str, bool]) -> None:
    """Print some lines for each; the terminal wraps what is too long for it, so nothing is cut off."""
    console = Console(soft_wrap=True, highlight=False)
    for model in listings:
        state, style = _FOR_PEOPLE[_state(model, verified)]
        size = f"  {mebibytes(model.num_bytes)}, {model.licence}, "
        console.print(Text.assemble((model.name, "bold"), size, (state, style)))
        console.print(Text(f"  {model.description}"))
        if model.is_cached or model.name in verified:
            console.print(Text(f"  {model.path}", style="dim"))
