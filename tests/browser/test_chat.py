"""Chat in the page: streamed, stopped, repeated, branched, kept; each shown figure is the server's own."""

import json
import subprocess

import pytest

from tools.browser import Page

STORY = "Tell me a long story about a lighthouse."


def use(page: Page, **settings):
    """Give fields of the settings a value."""
    for name, value in settings.items():
        selector = f".settings [name={name}]"
        if name in ("temperature", "top_k", "top_p", "min_p"):
            label = {"top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}.get(name, name)
            selector = f".settings input[aria-label='{label} slider']"
        page.set(selector, value)


def test_an_answer_is_streamed_and_its_figures_are_the_servers(page):
    page.open()
    use(page, max_tokens=40, seed=11)
    page.say("Name three colours.")
    page.wait_for_answer()
    [answer] = page.answers()
    body = {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 40, "seed": 11}
    assert answer["body"] == body
    assert answer["usage"]["completion_tokens"] == len(answer["tokenIds"]) == len(answer["provenance"])
    figures = page.one(".figures").text
    assert f"{answer['usage']['completion_tokens']} tokens" in figures
    assert f"of {answer['usage']['prompt_tokens']}" in figures
    assert page.one(".figures code[data-seed]").text == "11"


def test_stop_ends_the_answer_and_the_servers_work(page, server):
    page.open()
    use(page, max_tokens=1500)
    page.say(STORY)
    page.wait(lambda: len(page.one(".answer").text) > 20, "some text")
    page.click("Stop")
    page.wait(lambda: not server.get("/v1/requests").json()["data"], "the server to notice")
    page.wait(lambda: page.all(".answer[data-finish-reason=stopped]"), "the answer's end")
    [answer] = page.answers()
    assert 0 < len(answer["tokenIds"]) < 1500
    assert answer["text"]


def test_regenerating_with_the_same_seed_gives_the_same_text(page):
    page.open()
    use(page, max_tokens=40, temperature=1)
    page.say(STORY)
    page.wait_for_answer()
    page.click("use again")
    page.click("Regenerate")
    page.wait(lambda: len(page.answers()) == 2, "the second variant")
    page.wait_for_answer()
    first, second = page.answers()
    assert first["text"] == second["text"]
    assert first["tokenIds"] == second["tokenIds"]
    assert page.one(".variants").text.split("\n")[1] == "2 of 2"


def test_the_button_shows_that_speculation_and_cache_change_no_byte(page):
    page.open()
    use(page, max_tokens=60, temperature=0.8)
    page.say("Repeat this twice: one two three four five six seven eight nine ten.")
    page.wait_for_answer()
    page.click("Same seed, same tokens?")
    line = page.one(".checked.is-same").text
    [answer] = page.answers()
    assert line.startswith(
        f"Identical: {len(answer['tokenIds'])} tokens, {len(answer['text'].encode())} bytes."
    )


def test_a_difference_would_be_seen(page, server):
    page.open()
    difference = page.run(
        "const { checkSameTokens, askWhole, CHAT } = await import('/static/playground/answers.js');"
        "const messages = [{ role: 'user', content: 'Hi' }];"
        "const answer = await askWhole(CHAT, { messages, max_tokens: 12, seed: 1 });"
        "const tokenIds = answer.tokenIds.map((id, place) => (place === 5 ? id + 1 : id));"
        "const others = [{ ...answer, tokenIds }, { ...answer, text: answer.text + ' ' }];"
        "return Promise.all(others.map((other) => checkSameTokens(other)));"
    )
    assert [one["isSame"] for one in difference] == [False, False]
    assert difference[0]["firstDifference"] == 5


def test_an_edited_message_and_a_conversation_survive_a_reload(page):
    page.open()
    use(page, max_tokens=10)
    page.say("Say hello.")
    page.wait_for_answer()
    page.click("Edit")
    page.set(".message textarea", "Say goodbye.")
    page.click("Send", ".message")
    page.wait_for_answer()
    page.say("And again.")
    page.wait_for_answer(2)
    before = page.stored()["conversations"][0]
    assert [message.get("content") for message in before["messages"][::2]] == ["Say goodbye.", "And again."]
    page.reload()
    assert page.stored()["conversations"][0] == before
    assert [one.text.split("\n")[0] for one in page.all(".message.is-user")] == ["Say goodbye.", "And again."]
    sent = page.answers()[0]["body"]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]


def test_a_schema_holds_and_a_broken_one_is_named(page):
    page.open()
    name = "age_of_the_person_in_years"  # once it has begun, nothing else can follow
    schema = {"type": "object", "required": [name], "properties": {name: {"type": "integer"}}}
    use(page, max_tokens=64, schema=json.dumps(schema), temperature=0)
    page.say("Invent a person.")
    page.wait_for_answer()
    assert isinstance(json.loads(page.answers()[0]["text"])[name], int)
    use(page, schema="{")
    page.say("Another.")
    assert page.one(".problem").text.startswith("JSON schema: ")


def test_tokens_that_a_grammar_forces_are_its_own(page):
    page.open()
    answer = page.run(
        "const { askWhole, CHAT } = await import('/static/playground/answers.js');"
        "return askWhole(CHAT, args[0]);",
        {
            "messages": [{"role": "user", "content": "Say it."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "it", "schema": {"const": "a b c d e f"}},
            },
            "speculation": {"mode": "ngram", "k": 4},  # a length of its own: whether it pays does not matter
        },
    )
    assert json.loads(answer["text"]) == "a b c d e f"
    assert "grammar" in {entry["source"] for entry in answer["provenance"]}


def test_tools_are_called(page):
    page.open()
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {"city": {"enum": ["Oslo"]}},
            },
        },
    }
    use(page, max_tokens=64, tools=json.dumps([tool]), temperature=0)
    body = {"tool_choice": "required", "tools": [tool], "max_tokens": 64, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Weather in Oslo?"}]
    answer = page.run(
        "const { askWhole, CHAT } = await import('/static/playground/answers.js');"
        "return askWhole(CHAT, args[0]);",
        body,
    )
    [call] = answer["toolCalls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


@pytest.mark.parametrize("form", ["curl", "Python", "JSON"])
def test_what_is_exported_gives_the_same_answer(page, server, form, capfd):
    page.open()
    use(page, max_tokens=16, stop="zzz'\"\nüü", system='You\'re "brief".')
    page.say("It's a test: say 'hello' & \"bye\" in $HOME.")
    page.wait_for_answer()
    page.click("Export")
    page.click(form, "dialog")
    text = page.one(".export").get_attribute("textContent")
    [answer] = page.answers()
    page.click("Close", "dialog")
    if form == "curl":
        printed = subprocess.run(
            ["bash", "-c", f"{text} -s"], capture_output=True, check=True
        ).stdout.decode()
        chunks = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: {")]
        written = "".join(
            chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]
        )
    elif form == "Python":
        exec(compile(text, "exported", "exec"), {})
        written = capfd.readouterr().out[:-1]
    else:
        reply = server.post(
            "/v1/chat/completions", content=text, headers={"content-type": "application/json"}
        )
        written = reply.json()["choices"][0]["message"]["content"]
    assert written == answer["text"]


def test_presets_are_applied_saved_and_forgotten(page):
    page.open()
    page.set(".presets select", "Greedy")
    assert page.stored()["settings"]["temperature"] == 0
    page.set(".presets input", "mine")
    page.click("Save", ".presets")
    page.set(".presets select", "Model's defaults")
    assert page.stored()["settings"]["temperature"] == ""
    page.set(".presets select", "mine")
    assert page.stored()["settings"]["temperature"] == 0
    page.set(".presets input", "mine")
    page.click("Delete", ".presets")
    assert page.stored()["presets"] == []


def test_a_refused_request_says_why_and_the_next_one_works(page):
    page.open()
    use(page, max_tokens=10, stop="\n".join(f"stop {number}" for number in range(17)))
    page.say("Hi.")
    assert "stop" in page.one(".answer .problem").text
    use(page, stop="")
    page.click("Edit")
    page.click("Send", ".message")
    page.wait(lambda: page.answers() and page.answers()[-1]["text"], "an answer")
    page.log("browser")  # Chromium notes the 400 as an error


def test_a_branch_begun_while_another_answer_grows_ends_that_one(page, server):
    page.open()
    use(page, max_tokens=10, seed=4)
    page.say("Name a colour.")
    page.wait_for_answer()
    page.click("Tokens", ".answer")
    page.nth(2, ".answer [role=option]").click()
    page.wait(lambda: page.all(".bar button"), "the bars")
    use(page, max_tokens=1500)
    page.say(STORY)
    page.wait(lambda: len(page.all(".message.is-assistant")[-1].text) > 40, "some of the story")
    page.all(".bar button")[0].click()
    page.wait(lambda: len(page.answers()) == 2 and page.answers()[1]["usage"], "the branch")
    page.wait(lambda: not server.get("/v1/requests").json()["data"], "the story's end")
    page.wait(lambda: page.all(".composer button[type=submit]"), "nothing to run")
    assert len(page.stored()["conversations"][0]["messages"]) == 2
