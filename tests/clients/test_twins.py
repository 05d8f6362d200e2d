"""The two clients are one: the synchronous one is generated, and has the names and types of the other."""

import inspect
import re
from pathlib import Path
from typing import Any

import draftline_client
import pytest
from draftline_client import AsyncClient, Client
from draftline_client._async import resources as async_resources
from draftline_client._sync import resources

from tools.generate_sync_client import PACKAGE, generate

SOURCES = sorted((PACKAGE / "_async").glob("*.py"))
PAIRS = [
    *(
        (getattr(draftline_client, name), getattr(draftline_client, f"Async{name}"))
        for name in ("Client", "Stream")
    ),
    *(
        (getattr(draftline_client, name), getattr(draftline_client, f"Async{name}"))
        for name in ("CompletionStream", "ChatStream", "ResponseStream")
    ),
    *(
        (cls, getattr(async_resources, f"Async{name}"))
        for name, cls in vars(resources).items()
        if inspect.isclass(cls) and cls.__module__ == resources.__name__
    ),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_generated_file_is_up_to_date(path: Path) -> None:
    twin = PACKAGE / "_sync" / path.name
    assert twin.read_text() == generate(path), "run python tools/generate_sync_client.py"


def test_every_file_has_a_twin_and_none_waits() -> None:
    twins = sorted((PACKAGE / "_sync").glob("*.py"))
    assert [path.name for path in twins] == [path.name for path in SOURCES]
    for path in twins:
        assert not re.search(r"\b(async|await|asyncio|a?iter_raw|aclose|anext)\b|Async", path.read_text())


def test_there_is_something_to_compare() -> None:
    assert len(PAIRS) == 12
    assert len({name for cls, _ in PAIRS for name in public(cls)}) > 30


def public(cls: type) -> dict[str, Any]:
    """The public methods of a class, named as those of the synchronous client."""
    names = {"aclose": "close"}
    return {names.get(name, name): value for name, value in vars(cls).items() if not name.startswith("_")}


def as_sync(text: str) -> str:
    plain = re.sub(r"\bAsync(?=[A-Z])|\bawait |\basync ", "", text)
    return plain.replace("_async", "_sync").replace("aclose", "close")


def described(member: Any) -> tuple[str, list[tuple[str, str, str]], str]:
    function = member.fget if isinstance(member, property) else member
    signature = inspect.signature(function)
    parameters = [(p.name, str(p.kind), as_sync(str(p.annotation))) for p in signature.parameters.values()]
    return as_sync(str(signature.return_annotation)), parameters, as_sync(inspect.getdoc(member) or "")


@pytest.mark.parametrize(("sync", "asynchronous"), PAIRS, ids=lambda cls: cls.__name__)
def test_the_twins_have_the_same_methods(sync: type, asynchronous: type) -> None:
    ours, theirs = public(sync), public(asynchronous)
    assert ours.keys() == theirs.keys()
    for name, member in ours.items():
        assert isinstance(member, property) == isinstance(theirs[name], property)
        assert described(member) == described(theirs[name]), name
        waits = inspect.iscoroutinefunction(theirs[name]) or inspect.isasyncgenfunction(theirs[name])
        assert waits != (isinstance(member, property) or name == "with_options"), name


def test_the_clients_are_built_alike() -> None:
    """Only what waits between attempts waits otherwise."""
    (_, ours, _), (_, theirs, _) = (described(cls.__init__) for cls in (Client, AsyncClient))
    assert [each for each in ours if each[0] != "sleep"] == [each for each in theirs if each[0] != "sleep"]
    assert [each[:2] for each in ours] == [each[:2] for each in theirs]
