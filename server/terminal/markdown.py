"""Markdown as lines for a terminal, block by block."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement, TableElement
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

# What a model writes is shown to the last character: tags are text, and so are definitions of links.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("reference")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A top-level block of a text: its kind, as markdown-it names it, and where it begins."""

    kind: str
    start: int  # characters from the text's start
    item_starts: tuple[int, ...] = ()  # of a list that can be cut between any two items


def find_blocks(text: str) -> list[Block]:
    """Return the top-level blocks; all but the last stay as they are whatever lines follow `text`."""
    offsets = [0]
    for line in text.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    tokens = _PARSER.parse(text)
    return [
        Block(kind=token.type, start=offsets[token.map[0]], item_starts=_item_starts(tokens, place, offsets))
        for place, token in enumerate(tokens)
        if token.level == 0 and token.map is not None and token.nesting >= 0
    ]


def _item_starts(tokens: list[Token], place: int, offsets: list[int]) -> tuple[int, ...]:
    """Return where a list's items begin; nothing if a part of it alone would be numbered otherwise."""
    opening = tokens[place]
    if opening.type not in ("bullet_list_open", "ordered_list_open"):
        return ()
    starts = list[int]()
    number = int(opening.attrs.get("start", 1))
    for token in tokens[place + 1 :]:
        if token.level == 0:
            break
        if token.level == 1 and token.type == "list_item_open" and token.map is not None:
            if opening.type == "ordered_list_open" and token.info != str(number + len(starts)):
                return ()
            starts.append(offsets[token.map[0]])
    return tuple(starts)


def render_markdown(text: str, console: Console, width: int) -> list[str]:
    """Return a text's lines, at most `width` columns wide, with the escape sequences of their styles."""
    try:
        return _render(_AnswerMarkdown(text), console, width)
    except Exception:  # noqa: BLE001 - an answer that the renderer fails on is shown as it is
        return _render(Text(text), console, width)


def _render(renderable: Text | Markdown, console: Console, width: int) -> list[str]:
    with console.capture() as captured:
        console.print(renderable, width=width)
    lines = [line.rstrip(" ") for line in captured.get().split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:  # rich begins a list with one
        lines.pop(0)
    return lines


class _Code(CodeBlock):
    """Code in the terminal's own colours, indented, every line on its own: what follows changes none.

    Above it stands what the fence says of it: an answer may end with that line.
    """

    def __init__(self, lexer_name: str, theme: str, info: str) -> None:
        super().__init__(lexer_name, theme)
        self.info = info

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Code":
        """Return the element of a token."""
        return cls(token.info.partition(" ")[0] or "text", markdown.code_theme, token.info.strip())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.info:
            yield Text(self.info, style="dim")
        yield Syntax(
            str(self.text).rstrip("\n"),
            self.lexer_name,
            theme="ansi_dark",
            background_color="default",
            word_wrap=True,
            padding=(0, 2),
        )


class _Heading(Heading):
    """A heading where every other line begins, too."""

    LEVEL_ALIGN: ClassVar = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Table(TableElement):
    """A table that breaks long words instead of cutting them off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        header = self.header.row if self.header is not None else None
        for cell in header.cells if header is not None else ():
            table.add_column(cell.content, justify=cell.justify, overflow="fold")
        for row in self.body.rows if self.body is not None else ():
            table.add_row(*(cell.content for cell in row.cells))
        yield table


class _AnswerMarkdown(Markdown):
    """Markdown whose line breaks are kept: models write verses and plain lists that way."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
        "table_open": _Table,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)  # an address is shown, not hidden behind a link's text
        self.parsed = _PARSER.parse(text)
        for token in _all_tokens(self.parsed):
            if token.type == "softbreak":
                token.type = "hardbreak"


def _all_tokens(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from _all_tokens(token.children or [])
