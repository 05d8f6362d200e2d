"""Responses of both clients: events and items typed, what goes back, what had come when one breaks."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from draftline_client import (
    ResponseDeltaEvent,
    ResponseDoneEvent,
    ResponseEvent,
    ResponseFunctionCall,
    ResponseItem,
    ResponseItemEvent,
    ResponseMessage,
    ResponsePartEvent,
    ResponseReasoning,
    ResponseStatusEvent,
    StreamBrokenError,
    StreamError,
)


def event(body: dict[str, Any]) -> bytes:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()


RESPONSE = {
    "id": "resp_1",
    "created_at": 5,
    "model": "m",
    "status": "in_progress",
    "output": [],
    "usage": None,
}
PART = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
DONE_ITEM = {"status": "completed"}
ITEMS: list[dict[str, Any]] = [
    {
        **DONE_ITEM,
        "id": "rs_1",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    },
    {**DONE_ITEM, "id": "fc_1", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {**DONE_ITEM, "id": "ns_1", "type": "newer", "what": 1},
    {**DONE_ITEM, "id": "msg_1", "type": "message", "role": "assistant", "content": [PART]},
]
RESPONSE_USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 5,
}
COMPLETED = {
    **RESPONSE,
    "status": "completed",
    "output": ITEMS,
    "usage": RESPONSE_USAGE,
    "seed": 9,
    "store": True,
}


def events(*bodies: dict[str, Any]) -> list[bytes]:
    return [event({**body, "sequence_number": i}) for i, body in enumerate(bodies)]


PLACE = {"item_id": "msg_1", "output_index": 3, "content_index": 0}
SCRIPT = [
    {"type": "response.created", "response": RESPONSE},
    {"type": "response.output_item.added", "output_index": 3, "item": {**ITEMS[3], "content": []}},
    {"type": "response.content_part.added", **PLACE, "part": {**PART, "text": ""}},
    {"type": "response.output_text.delta", **PLACE, "delta": "Hel", "logprobs": []},
    {"type": "response.newer", "what": 1},
    {"type": "response.output_text.delta", **PLACE, "delta": "lo", "logprobs": []},
    {"type": "response.reasoning_text.delta", **PLACE, "delta": "not text"},
    {"type": "response.output_text.done", **PLACE, "text": "Hello", "logprobs": []},
    {
        "type": "response.function_call_arguments.done",
        "item_id": "fc_1",
        "output_index": 1,
        "name": "f",
        "arguments": "{}",
    },
]


def test_the_events_of_a_response_are_typed(server: Any, client: Any) -> None:
    end = {"type": "response.completed", "response": COMPLETED}
    server.then(server.stream(*events(*SCRIPT, end), b": nothing follows\n\n"))
    stream = client.responses.create(input="p", stream=True)
    found = list(stream)
    assert [type(each) for each in found] == [
        ResponseStatusEvent,
        ResponseItemEvent,
        ResponsePartEvent,
        ResponseDeltaEvent,
        ResponseEvent,
        ResponseDeltaEvent,
        ResponseDeltaEvent,
        ResponseDoneEvent,
        ResponseDoneEvent,
        ResponseStatusEvent,
    ]
    assert [each.sequence_number for each in found] == list(range(10))
    assert found[4] == ResponseEvent(type="response.newer", sequence_number=4, extra={"what": 1})
    assert (found[7].text, found[8].arguments, found[8].name) == ("Hello", "{}", "f")
    assert stream.text == "Hello"
    response = stream.get_final_response()
    assert response == found[9].response
    assert (response.text, response.seed, response.extra) == ("Hello", 9, {"store": True})
    assert response.usage == stream.usage
    assert (stream.usage.input_tokens_details.cached_tokens, stream.usage.total_tokens) == (1, 5)
    (request,) = server.requests
    assert request.body == {"input": "p", "stream": True}


def test_the_items_of_a_response_are_typed_and_go_back_as_they_came(server: Any, client: Any) -> None:
    server.then(server.json(COMPLETED), server.json(COMPLETED))
    output = client.responses.create(input="p").output
    kinds = [ResponseReasoning, ResponseFunctionCall, ResponseItem, ResponseMessage]
    assert [type(item) for item in output] == kinds
    assert (output[0].text, output[1].arguments, output[2].extra) == ("hm", "{}", {"what": 1})
    client.responses.create(input=output)
    sent = server.requests[1].body["input"]
    plain = {**ITEMS[3], "content": [{"type": "output_text", "text": "Hello", "annotations": []}]}
    assert sent == [*ITEMS[:3], plain]


def test_what_an_item_does_not_have_does_not_go_back(client: Any, server: Any) -> None:
    server.then(server.json(COMPLETED))
    client.responses.create(input=[ResponseItem(type="newer", extra={"what": 1})])
    assert server.requests[0].body["input"] == [{"type": "newer", "what": 1}]


def test_a_response_that_breaks_says_what_had_come(server: Any, client: Any) -> None:
    server.then(server.stream(*events(*SCRIPT), then="drop"))
    with pytest.raises(StreamBrokenError) as caught:
        client.responses.create(input="p", stream=True).get_final_response()
    received = caught.value.received
    assert (received.text, received.num_chunks, received.finish_reasons) == ("Hello", 9, (None,))


def test_a_response_that_fails(server: Any, client: Any) -> None:
    failure = {"type": "error", "code": "dead", "message": "the engine died", "param": None}
    server.then(server.stream(*events(SCRIPT[0], failure), then="wait"))
    with pytest.raises(StreamError, match="the engine died") as caught:
        list(client.responses.create(input="p", stream=True))
    assert (caught.value.code, caught.value.received.num_chunks) == ("dead", 1)
    assert server.disconnected.wait(20)


def test_a_response_read_to_its_end_keeps_the_connection(server: Any, connect: Callable[..., Any]) -> None:
    server.then(*[server.stream(*events({"type": "response.incomplete", "response": COMPLETED}))] * 2)
    client = connect()
    for _ in range(2):
        with client.responses.create(input="p", stream=True) as stream:
            list(stream)
    assert server.num_connections == 1
