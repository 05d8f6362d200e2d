"""Every public name, method and attribute of the client is typed and documented."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import draftline_client
import pytest
import typing_extensions
from draftline_client import AsyncClient, Client, options

NAMES = [name for name in draftline_client.__all__ if name != "__version__"]
# What the modules import for type checkers only.
CHECKERS = {name: getattr(typing_extensions, name) for name in ("Self", "Unpack", "Required")}
CHECKERS |= {name: value for name, value in vars(options).items() if not name.startswith("_")}


def resources() -> Iterator[type]:
    """The classes behind `client.chat` and the like, which have no public name."""
    for client in (Client, AsyncClient):
        for member in vars(client).values():
            if isinstance(member, property):
                yield typing_extensions.get_type_hints(member.fget, localns=CHECKERS)["return"]


CLASSES = [value for name in NAMES if inspect.isclass(value := getattr(draftline_client, name))]
CLASSES += list(resources())


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(cls).items():
        if name.startswith("_") and name != "__init__":
            continue
        function = (
            member.fget
            if isinstance(member, property)
            else inspect.unwrap(getattr(member, "__func__", member))
        )
        if inspect.isfunction(function) and not _is_of_dataclass(cls, name):
            yield name, function


def _is_of_dataclass(cls: type, name: str) -> bool:
    return name == "__init__" and dataclasses.is_dataclass(cls)


def attributes(cls: type) -> Iterator[tuple[str, bool]]:
    """The attributes that the class body declares, and whether a comment says what each is."""
    lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    [body] = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            assert node.end_lineno is not None
            yield node.target.id, "  # " in lines[node.end_lineno - 1]


def has_any(hint: object) -> bool:
    """Whether Any is in a type, but as the values of a JSON object."""
    if hint is Any:
        return True
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Mapping and arguments == (str, Any):
        return False
    return any(has_any(argument) for argument in arguments)


def test_there_is_much_to_check() -> None:
    assert len(NAMES) > 100
    assert len(CLASSES) > len(NAMES) - 20
    assert sum(len(list(attributes(cls))) for cls in CLASSES) > 250
    assert len(list(resources())) == 14


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_a_class_is_documented(cls: type) -> None:
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "the signature that dataclass makes up"
    assert [name for name, is_said in attributes(cls) if not is_said] == []
    for name, function in methods(cls):
        assert name == "__init__" or inspect.getdoc(function), name


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__qualname__)
def test_a_class_is_typed(cls: type) -> None:
    hints = typing_extensions.get_type_hints(cls, localns=CHECKERS)
    assert [name for name, hint in hints.items() if has_any(hint) and not name.startswith("_")] == []
    for name, function in methods(cls):
        found = typing_extensions.get_type_hints(function, localns=CHECKERS)
        parameters = list(inspect.signature(function).parameters)[1:]
        assert {*parameters, "return"} <= found.keys(), name
        assert not any(has_any(hint) for hint in found.values()), name


@pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES if issubclass(cls, Exception)], ids=lambda cls: cls.__name__
)
def test_what_an_error_knows_is_documented(cls: type) -> None:
    said = " ".join(base.__doc__ or "" for base in cls.__mro__)
    for base in cls.__mro__:
        if base.__module__ != "draftline_client.errors" or "__init__" not in vars(base):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(vars(base)["__init__"])))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                assert f"`{node.attr}`" in said, node.attr


def test_what_is_no_class_is_documented() -> None:
    """Type aliases and constants have a docstring below them."""
    others = {name for name in NAMES if not inspect.isclass(getattr(draftline_client, name))}
    documented = set()
    for module in (options, draftline_client.types._record, draftline_client.types.completions):
        body = ast.parse(inspect.getsource(module)).body
        for node, after in pairwise(body):
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                documented |= {target.id for target in targets if isinstance(target, ast.Name)}
    assert others - documented == set()
