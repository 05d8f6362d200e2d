"""ChatTemplate: a conversation to the prompt text that the model was trained on."""

from collections.abc import Mapping, Sequence

from jinja2.exceptions import TemplateError
from jinja2.meta import find_undeclared_variables

from engine.interface.errors import CheckpointError, RequestError
from server.text.template_sandbox import TemplateRefusal, TemplateSandbox

_MAX_SOURCE_CHARACTERS = 1 << 18
_MAX_SHOWN = 300
_PYTHON_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ChatTemplate:
    """A checkpoint's Jinja template; safe to share between threads.

    `variables` are the names that it asks for. Raises CheckpointError when `source` does not compile.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        if len(source) > _MAX_SOURCE_CHARACTERS:
            raise CheckpointError(
                f"the chat template has {len(source)} characters, the limit is {_MAX_SOURCE_CHARACTERS}"
            )
        self.source = source
        self._bos_token = bos_token
        self._eos_token = eos_token
        self._sandbox = TemplateSandbox()
        try:
            self._template = self._sandbox.build(source)
            self.variables = frozenset(find_undeclared_variables(self._sandbox.parse(source)))
        except (TemplateError, *_PYTHON_ERRORS) as error:
            raise CheckpointError(f"the chat template does not compile: {_describe(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """Return the prompt for a conversation.

        `variables` reach the template beside the ones that every template may expect, which they cannot
        replace.
        Raises RequestError when the template refuses the messages, fails on them, or works too long.
        """
        known: dict[str, object] = {
            "messages": list(messages),
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
        }
        try:
            return self._sandbox.run(self._template, {"documents": None, **(variables or {}), **known})
        except TemplateRefusal as error:
            raise RequestError(
                f"the model's chat template refuses the messages: {_describe(error)}", param="messages"
            ) from error
        except (TemplateError, *_PYTHON_ERRORS) as error:
            raise RequestError(
                f"the model's chat template cannot render the messages: {_describe(error)}", param="messages"
            ) from error


def _describe(error: Exception) -> str:
    """Return the error's text, short and free of lone surrogates, which an error body could not hold."""
    text = str(error) or type(error).__name__
    return text[:_MAX_SHOWN].encode(errors="backslashreplace").decode()[:_MAX_SHOWN]
