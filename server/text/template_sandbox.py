"""TemplateSandbox: Jinja whose renderings are metered, so that no template can hang or eat the memory."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateAssertionError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from server.text.template_work import (
    Work,
    check_brace_format,
    check_filter,
    check_method,
    check_operator,
    check_percent_format,
)

_HIDDEN_METHODS = frozenset({"translate", "maketrans"})
# fmt: off
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list",
    "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe",
    "select", "selectattr", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique",
    "upper", "wordcount",
)
# fmt: on


class TemplateRefusal(TemplateRuntimeError):  # noqa: N818 -- the template's own word on the messages
    """The template called `raise_exception`."""


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it: trimmed blocks, loop controls, `tojson`, `raise_exception`.

    Everything that a rendering makes, prints or repeats is paid for out of MAX_WORK; operations that
    could make much out of little are paid for before they run. Filters that no chat template needs and
    whose cost is hard to bound do not exist here.
    """

    intercepted_binops = frozenset({"+", "*", "**", "//", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, loopcontrols],
            finalize=self.pay_for,
        )
        self._running = threading.local()  # a template is shared, its renderings are not
        self._unmetered = ImmutableSandboxedEnvironment()
        self._unmetered.filters["tojson"] = self._to_json
        self.filters = {name: self._metered_filter(name) for name in _FILTERS}
        del self.globals["lipsum"]
        self.globals.update(
            dict=_make_dict,
            namespace=_Namespace,
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
        )

    def build(self, source: str) -> Template:
        """Compile a template; raises TemplateError, and what Python's own compiler raises."""
        tree = self.parse(source)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateAssertionError("a chat template cannot load other templates", node.lineno)
        tree = _Metering().visit(tree)
        tree.set_environment(self)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def run(self, template: Template, variables: Mapping[str, object]) -> str:
        """Render a template that `build` made; raises WorkLimitError, and whatever a template can raise."""
        self._running.work = Work(variables)
        try:
            return template.render(variables)
        finally:
            del self._running.work

    # What compiled templates call.

    def step(self, num_characters: int) -> bool:
        """Pay for one round of a loop that prints so many characters of the template's own."""
        self._running.work.step(num_characters)
        return True

    def pay_for(self, value: object) -> object:
        """Pay for a value that has been made or is printed, and return it."""
        work: Work | None = getattr(self._running, "work", None)  # None: a constant, while compiling
        if work is not None:
            work.pay_for(value)
        return value

    def tilde(self, *values: object) -> str:
        """Do what the operator `~` does."""
        texts = [str(value) for value in values]
        for text in texts:
            self._running.work.spend(len(text))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run an arithmetic operator."""
        work: Work = self._running.work
        check_operator(work, operator, left, right)
        return self.pay_for(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 -- as Jinja
        """Call a function, method or macro."""
        owner = getattr(__obj, "__self__", None)
        if owner is __self:  # only compiled code gets at the methods above
            return __obj(*args)  # without the variables that Jinja gives for its own callables
        work: Work = __self._running.work
        work.step()
        if isinstance(owner, str):
            check_method(work, owner, __obj.__name__, args)
        return __self.pay_for(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Guard `str.format`, as Jinja does, and meter it."""
        formatter = super().wrap_str_format(value)
        if formatter is None:
            return None

        def run_format(*args: Any, **kwargs: Any) -> str:
            check_brace_format(self._running.work, value.__self__, (args, kwargs))
            return formatter(*args, **kwargs)

        return run_format

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Hide what numbers and strings can do beyond text."""
        if isinstance(obj, int | float | bytes) or (isinstance(obj, str) and attr in _HIDDEN_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def _metered_filter(self, name: str) -> Callable[..., Any]:
        @pass_context  # also keeps Jinja from running it at compile time
        def run_filter(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            work: Work = self._running.work
            work.step()
            if isinstance(value, Iterator):
                value = list(value)
            check_filter(work, name, value, args, kwargs)
            result = self._unmetered.call_filter(name, value, args, kwargs, context=context)
            return self.pay_for(list(result) if isinstance(result, Iterator) else result)

        return run_filter

    def _to_json(
        self,
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Write JSON without escaping HTML, with the options that chat templates use."""
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        pieces = []
        for piece in encoder.iterencode(value):
            self._running.work.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)


class _GenerationBlock(Extension):
    """`{% generation %}`, which marks the assistant's words for training, is just its body here."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Metering(NodeTransformer):
    """Makes loops, `~`, slices and literals report to the sandbox, which Jinja does for calls only."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """Rewrite the parts of a node, then the node itself."""
        node = super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            step = [nodes.Const(_count_characters(node))]
            node.body.insert(0, nodes.ExprStmt(_call("step", step, node), lineno=node.lineno))
            if node.test is not None:
                node.test = nodes.And(_call("step", step, node), node.test, lineno=node.lineno)
            return node
        if isinstance(node, nodes.Concat):
            return _call("tilde", node.nodes, node)
        is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        return _call("pay_for", [node], node) if is_slice or _is_built(node) else node


def _call(method: str, arguments: Sequence[nodes.Node], node: nodes.Node) -> nodes.Call:
    attribute = nodes.EnvironmentAttribute(method, lineno=node.lineno)
    return nodes.Call(attribute, list(arguments), [], None, None, lineno=node.lineno)


def _is_built(node: nodes.Node) -> bool:
    """Tell whether a node is a container that is built anew at each evaluation."""
    if not isinstance(node, nodes.List | nodes.Dict | nodes.Tuple) or getattr(node, "ctx", "load") != "load":
        return False
    try:
        node.as_const()
    except nodes.Impossible:
        return True
    return False


def _count_characters(loop: nodes.For) -> int:
    texts = [data.data for data in loop.find_all(nodes.TemplateData)]
    constants = [const.value for const in loop.find_all(nodes.Const) if isinstance(const.value, str)]
    return sum(map(len, texts)) + sum(map(len, constants))


class _Namespace(Namespace):
    """Jinja's `namespace`, printed without its attributes and closed to names that start with `_`."""

    def __init__(*arguments: Any, **attributes: Any) -> None:  # a name may be `self`
        self, *rest = arguments
        values = dict(*rest, **attributes)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name[:60]!r}")


def _make_dict(*arguments: Any, **items: Any) -> dict[Any, Any]:
    return dict(*arguments, **items)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    check_percent_format(form)
    return datetime.now().strftime(form)
