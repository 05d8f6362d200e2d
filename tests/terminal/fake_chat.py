"""`draftline chat` with a backend that says what the question asks for; run in a pseudo-terminal."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from server.commands.chat import run_chat
from server.settings import parse_settings
from server.terminal.backend import AnswerError, AnswerEvent, AnswerStats, Message, TextPiece
from server.terminal.output import standard_output
from server.terminal.settings import AnswerParams, ChatSettings
from server.terminal.terminal_modes import quiet_keys


class FakeBackend:
    """Answers at once, slowly, never or wrongly."""

    name = "fake-model"
    description = "no model at all"

    async def close(self) -> None:
        pass

    def complete(self, prompt: str, params: AnswerParams) -> AsyncGenerator[AnswerEvent, None]:
        return self.chat([Message(role="user", content=prompt)], params)

    async def chat(
        self, messages: Sequence[Message], params: AnswerParams
    ) -> AsyncGenerator[AnswerEvent, None]:
        question = messages[-1].content
        word, _, rest = question.partition(" ")
        if word == "say":
            yield TextPiece(rest)
        elif word == "letters":  # as slowly as a model
            for character in rest.encode().decode("unicode_escape"):
                yield TextPiece(character)
                await asyncio.sleep(0.001)
        elif word == "file":  # until the file's last line is "end"
            async for piece in follow(Path(rest)):
                yield piece
        elif word == "begin":
            yield TextPiece(rest)
            await asyncio.Event().wait()
        elif word == "fail":
            yield TextPiece("half an answer")
            raise AnswerError("the connection broke")
        elif word == "crash":
            yield TextPiece("half an answer")
            raise RuntimeError("a bug")
        elif word == "think":
            yield TextPiece("let me see", is_reasoning=True)
            yield TextPiece(rest)
        else:
            conversation = [f"{message.role[0]}:{message.content}" for message in messages]
            yield TextPiece(json.dumps(conversation))
        yield AnswerStats(
            prompt_tokens=100,
            completion_tokens=7,
            cached_tokens=96,
            seed=params.seed or 4711,
            finish_reason="stop",
        )


async def follow(path: Path) -> AsyncGenerator[TextPiece, None]:
    """Yield what is appended to a file, so that a test says what comes when."""
    with path.open() as file:
        while True:
            text = file.read()
            yield TextPiece(text.removesuffix("END"))
            if text.endswith("END"):
                return
            await asyncio.sleep(0.01)


def main() -> int:
    settings = parse_settings(ChatSettings, sys.argv[1:], program="fake chat")
    output = standard_output()
    with quiet_keys():
        return asyncio.run(run_chat(FakeBackend(), settings, output))


if __name__ == "__main__":
    sys.exit(main())
