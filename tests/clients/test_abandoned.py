"""Streams that nobody closes, and streams that another task or a cancellation ends."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from draftline_client import AsyncClient, AsyncStream, Client, ClosedError, CompletionChunk

CHUNK = (
    b'data: {"id": "c", "created": 1, "model": "m", '
    b'"choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'
)
Body = Callable[[AsyncClient], Awaitable[None]]


def run(server: Any, body: Body) -> None:
    async def main() -> None:
        async with AsyncClient(base_url=server.url) as client:
            await body(client)

    asyncio.run(main())


async def open_stream(client: AsyncClient) -> AsyncStream[CompletionChunk]:
    return await client.completions.create(prompt="p", stream=True)


async def disconnect(server: Any) -> bool:
    return await asyncio.get_running_loop().run_in_executor(None, server.disconnected.wait, 20)


@pytest.mark.parametrize("num_read", [0, 1])
def test_a_dropped_stream_closes_its_connection(server: Any, num_read: int) -> None:
    server.then(server.stream(CHUNK, then="wait"))
    with Client(base_url=server.url) as client:
        stream = client.completions.create(prompt="p", stream=True)
        for _ in range(num_read):
            next(stream)
        del stream
        gc.collect()
        assert server.disconnected.wait(20)


@pytest.mark.parametrize("num_read", [0, 1])
def test_a_dropped_asynchronous_stream_closes_its_connection(server: Any, num_read: int) -> None:
    server.then(server.stream(CHUNK, then="wait"))

    async def body(client: AsyncClient) -> None:
        stream = await open_stream(client)
        for _ in range(num_read):
            await anext(stream)
        del stream
        gc.collect()
        assert await disconnect(server)

    run(server, body)


def test_a_loop_that_is_left_closes_the_connection(server: Any) -> None:
    server.then(server.stream(CHUNK, CHUNK, then="wait"))

    async def read_one(client: AsyncClient) -> str:
        async for chunk in await open_stream(client):
            return chunk.choices[0].text
        return ""

    async def body(client: AsyncClient) -> None:
        assert await read_one(client) == "a"
        gc.collect()
        assert await disconnect(server)

    run(server, body)


def test_pieces_of_text_that_are_left_close_the_connection(server: Any) -> None:
    server.then(server.stream(CHUNK, CHUNK, then="wait"), server.stream(CHUNK, CHUNK, then="wait"))
    with Client(base_url=server.url) as client:
        for text in client.completions.create(prompt="p", stream=True).text_deltas():
            assert text == "a"
            break
        gc.collect()
        assert server.disconnected.wait(20)
    server.disconnected.clear()

    async def read_one(client: AsyncClient) -> str:
        async for text in (await open_stream(client)).text_deltas():
            return text
        return ""

    async def body(client: AsyncClient) -> None:
        assert await read_one(client) == "a"
        gc.collect()
        assert await disconnect(server)

    run(server, body)


def test_another_task_closes_the_stream_that_is_waited_for(server: Any) -> None:
    server.then(server.stream(CHUNK, then="wait"))

    async def body(client: AsyncClient) -> None:
        stream = await open_stream(client)
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await stream.aclose()
        with pytest.raises(ClosedError, match="the stream was closed before its end"):
            await reader
        with pytest.raises(ClosedError):
            await anext(stream)
        assert await disconnect(server)

    run(server, body)


def test_a_cancelled_reader_closes_the_connection(server: Any) -> None:
    server.then(server.stream(CHUNK, then="wait"))
    started = asyncio.Event()

    async def read(client: AsyncClient) -> None:
        async for _ in await open_stream(client):
            started.set()

    async def body(client: AsyncClient) -> None:
        task = asyncio.ensure_future(read(client))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await disconnect(server)

    run(server, body)


def test_a_cancelled_call_closes_the_connection(server: Any) -> None:
    arrived = asyncio.Event()

    async def body(client: AsyncClient) -> None:
        loop = asyncio.get_running_loop()

        def step(exchange: Any) -> None:
            loop.call_soon_threadsafe(arrived.set)
            exchange.wait_for_disconnect()

        server.then(step)
        task = asyncio.ensure_future(client.completions.create(prompt="p"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await disconnect(server)

    run(server, body)


def test_many_calls_run_at_once(server: Any) -> None:
    num_calls = 20
    server.then(*[server.stream(CHUNK, b"data: [DONE]\n\n")] * num_calls)

    async def read(client: AsyncClient) -> list[str]:
        return [chunk.choices[0].text async for chunk in await open_stream(client)]

    async def body(client: AsyncClient) -> None:
        assert await asyncio.gather(*(read(client) for _ in range(num_calls))) == [["a"]] * num_calls

    run(server, body)
    assert len(server.requests) == num_calls
