"""Third-party clients against a real server and the default model; run by `make test-ecosystem`.

They live in an environment of their own (requirements.txt), which knows nothing of draftline but its address.
A model of 135M parameters often answers nonsense: what is tested is the wire, and what grammars guarantee.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

MODEL = "smollm2-135m-instruct"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
SERVE = os.environ.get("DRAFTLINE", "draftline")


class Person(BaseModel):
    name: str = Field(max_length=20)
    age: int


def wait_until_ready(log):
    """Return the address that the server writes into its log, once it takes work."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if match := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{match[0]}/ready", timeout=5).close()
                return match[0]
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="session", autouse=True)
def base_url(tmp_path_factory):
    """Serve the default model on a free port, and let every client find it."""
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        log.open("w") as output,
        subprocess.Popen([SERVE, "serve", "--port", "0"], stdout=output, stderr=subprocess.STDOUT) as server,
    ):
        url = wait_until_ready(log)
        os.environ |= {
            "OPENAI_API_KEY": "none-needed",
            "OPENAI_BASE_URL": f"{url}/v1",
            "OPENAI_API_BASE": f"{url}/v1",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
        }
        yield f"{url}/v1"
        server.terminate()


def chat_model(base_url, **settings):
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=MODEL, base_url=base_url, max_tokens=200, **settings)


def test_langchain_binds_tools(base_url):
    from langchain_core.tools import tool

    @tool
    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    model = chat_model(base_url)
    assert model.bind_tools([weather], tool_choice="any").invoke("Weather in Paris?").tool_calls
    chunks = list(model.bind_tools([weather], tool_choice="weather").stream("Weather in Paris?"))
    assert sum(chunks[1:], chunks[0]).tool_calls[0]["name"] == "weather"
    assert model.bind_tools([weather]).invoke("Say hi.") is not None


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_has_structured_output(base_url, method):
    model = chat_model(base_url, seed=1).with_structured_output(Person, method=method)
    question = 'Invent a person. Answer in JSON, as {"name": "Ann", "age": 5}.'
    assert isinstance(model.invoke(question), Person)


def test_langchain_speaks_responses(base_url):
    assert chat_model(base_url, use_responses_api=True).invoke("Say hi.").text


def test_langchain_embeds(base_url):
    from langchain_openai import OpenAIEmbeddings

    model = OpenAIEmbeddings(model=MODEL, base_url=base_url, check_embedding_ctx_length=False)
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "Shares fell today."]
    cat, kitten, shares = model.embed_documents(texts * 400)[:3]  # more than the queue holds
    assert dot(cat, kitten) > dot(cat, shares)
    assert dot(model.embed_query(texts[0]), cat) == pytest.approx(1.0, abs=1e-5)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_anthropic(base_url):
    from anthropic import Anthropic

    tool = {"name": "weather", "input_schema": TOOL["function"]["parameters"]}
    asked = {"model": MODEL, "max_tokens": 200, "tools": [tool], "tool_choice": {"type": "any"}}
    messages = [{"role": "user", "content": "Weather in Paris?"}]
    client = Anthropic(base_url=base_url.removesuffix("/v1"), api_key="none-needed")
    reply = client.messages.create(messages=messages, **asked)
    assert reply.stop_reason == "tool_use"
    [call] = [block for block in reply.content if block.type == "tool_use"][:1]
    assert set(call.input) == {"city"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    messages += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    with client.messages.stream(messages=messages, model=MODEL, max_tokens=40, tools=[tool]) as stream:
        assert stream.get_final_message().usage.output_tokens > 0


def test_litellm_speaks_anthropic_and_embeds(base_url):
    import litellm

    hello = [{"role": "user", "content": "Say hi."}]
    where = base_url.removesuffix("/v1")
    reply = litellm.completion(
        model=f"anthropic/{MODEL}", api_base=where, api_key="none-needed", messages=hello, max_tokens=20
    )
    assert reply.choices[0].message.content
    vectors = litellm.embedding(model=f"openai/{MODEL}", api_base=base_url, input=["a", "b"])
    assert len(vectors.data) == 2


def test_litellm(base_url):
    import litellm

    ask = {"model": f"openai/{MODEL}", "api_base": base_url}
    hello = [{"role": "user", "content": "Weather in Paris?"}]
    reply = litellm.completion(**ask, messages=hello, tools=[TOOL], tool_choice="required", max_tokens=200)
    assert reply.choices[0].message.tool_calls[0].function.name == "weather"
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**ask, messages=[{"role": "user", "content": "x " * 20_000}])
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**ask, "model": "openai/nobody"}, messages=hello)
    assert litellm.responses(**ask, input="hi", max_output_tokens=20).output


def test_instructor_in_its_default_mode(base_url):
    import instructor
    import openai

    client = instructor.from_openai(openai.OpenAI(base_url=base_url))
    messages = [{"role": "user", "content": "Invent a person."}]
    person = client.chat.completions.create(
        model=MODEL, response_model=Person, messages=messages, max_tokens=200
    )
    assert isinstance(person, Person)


@pytest.mark.parametrize("name", ["OpenAIChatModel", "OpenAIResponsesModel"])
def test_pydantic_ai(base_url, name):
    from pydantic_ai import Agent
    from pydantic_ai.models import openai
    from pydantic_ai.providers.openai import OpenAIProvider

    model = getattr(openai, name)(MODEL, provider=OpenAIProvider(base_url=base_url))
    agent = Agent(model, output_type=Person, retries=3, model_settings={"max_tokens": 300})
    assert isinstance(agent.run_sync("Invent a person called Bob, aged 5.").output, Person)


@pytest.mark.parametrize("name", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents(base_url, name):
    import agents
    from openai import AsyncOpenAI

    @agents.function_tool
    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    model = getattr(agents, name)(model=MODEL, openai_client=AsyncOpenAI(base_url=base_url))
    settings = agents.ModelSettings(tool_choice="required", max_tokens=200)
    agent = agents.Agent(
        name="A", instructions="Use tools.", model=model, tools=[weather], model_settings=settings
    )

    async def main():
        whole = await agents.Runner.run(agent, "Weather in Paris?", max_turns=4)
        assert {"ToolCallItem", "ToolCallOutputItem"} <= {type(item).__name__ for item in whole.new_items}
        streamed = agents.Runner.run_streamed(agent, "Weather in Rome?", max_turns=4)
        kinds = {event.type async for event in streamed.stream_events()}
        assert {"raw_response_event", "run_item_stream_event"} <= kinds

    asyncio.run(main())


def test_smolagents(base_url):
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    @tool
    def weather(city: str) -> str:
        """Weather of a city.

        Args:
            city: the city
        """
        return f"sunny in {city}"

    model = OpenAIServerModel(model_id=MODEL, api_base=base_url, api_key="none", max_tokens=300)
    agent = ToolCallingAgent(tools=[weather], model=model, max_steps=3, verbosity_level=0)
    agent.run("Weather in Paris?")
    assert any(step.tool_calls for step in agent.memory.steps if hasattr(step, "tool_calls"))


def test_dspy_runs_its_loop(base_url):
    import dspy
    from dspy.utils.exceptions import AdapterParseError

    dspy.configure(lm=dspy.LM(f"openai/{MODEL}", api_base=base_url, max_tokens=400, cache=False))

    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sunny in {city}"

    loop = dspy.ReAct("question -> answer", tools=[weather], max_iters=2)
    try:
        assert loop(question="Weather in Paris?").trajectory
    except AdapterParseError as error:  # it asks for formats in words, and this model does not keep to them
        pytest.skip(f"the model's answer is not in dspy's format: {str(error)[:80]}")


def run_llm(base_url, tmp_path, *arguments):
    """Run simonw's llm with the server as a model of its own."""
    abilities = "supports_tools: true, supports_schema: true"
    config = f"- {{model_id: dl, model_name: {MODEL}, api_base: {base_url}, {abilities}}}\n"
    (tmp_path / "extra-openai-models.yaml").write_text(config)
    command = [shutil.which("llm", path=Path(os.sys.executable).parent), "-m", "dl", "--no-log", *arguments]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llm(base_url, tmp_path):
    function = "def now() -> str:\n    'The time.'\n    return 'noon'"
    run_llm(
        base_url, tmp_path, "--functions", function, "what time is it?", "-o", "max_tokens", "60", "--cl", "3"
    )
    text = run_llm(base_url, tmp_path, "--schema", "age int", "a person", "-o", "max_tokens", "200")
    assert set(json.loads(text)) == {"age"}


def test_lm_eval(base_url, tmp_path):
    """Loglikelihoods and generation, with the tokenizer of the server itself."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{base_url}/completions", model=MODEL, tokenizer_backend="remote", max_length=2048
    )

    def instances(kind, arguments):
        return [
            Instance(request_type=kind, doc={}, arguments=argument, idx=0, metadata=("t", 0, 1))
            for argument in arguments
        ]

    pairs = [("The capital of France is", " Paris"), ("The capital of France is", " banana")]
    (right, _), (wrong, _) = model.loglikelihood(instances("loglikelihood", pairs))
    assert wrong < right < 0.0
    until = {"until": ["\n"], "max_gen_toks": 16, "temperature": 0}
    [text] = model.generate_until(instances("generate_until", [("One, two,", until)]))
    assert "three" in text
    chat = LocalChatCompletion(base_url=f"{base_url}/chat/completions", model=MODEL)
    message = JsonChatStr(json.dumps([{"role": "user", "content": "Say hi."}]))
    [answer] = chat.generate_until(instances("generate_until", [(message, until)]))
    assert answer is not None


def test_node(base_url):
    """The OpenAI SDK's runTools and the Vercel AI SDK, where npm has installed them."""
    folder = Path(__file__).parent
    if not (folder / "node_modules").is_dir():
        pytest.skip("no node_modules: npm install")
    done = subprocess.run(
        ["node", folder / "clients_check.mjs", base_url, MODEL],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
