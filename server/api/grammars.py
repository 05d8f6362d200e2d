"""Grammars are compiled beside the event loop, the slow ones a few at a time."""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engine.interface.engine_client import EngineClient
from engine.interface.errors import RequestError
from engine.interface.grammar_spec import GrammarSpec


@dataclass(frozen=True, kw_only=True)
class RequestedGrammar:
    """A grammar and the field that asked for it."""

    field: str
    spec: GrammarSpec


class GrammarCompilerPool:
    """Lets a grammar through to the engine once it compiles.

    At most `max_threads` grammars that were never seen compile at the same time, so that hostile ones wait
    for each other and for nothing else; one that compiled before passes them, for the engine still has it.
    """

    def __init__(self, *, max_threads: int = 2, max_known: int = 64) -> None:
        self._executor = ThreadPoolExecutor(max_threads, thread_name_prefix="grammar")
        self._known: OrderedDict[GrammarSpec, None] = OrderedDict()
        self._max_known = max_known

    async def compile(self, engine: EngineClient, grammar: RequestedGrammar) -> None:
        """Wait until the engine has compiled the grammar; raises RequestError naming the field."""
        executor = None if grammar.spec in self._known else self._executor
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(executor, engine.compile_grammar, grammar.spec)
        except RequestError as error:
            raise RequestError(str(error), param=grammar.field) from None
        self._known[grammar.spec] = None
        self._known.move_to_end(grammar.spec)
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)
