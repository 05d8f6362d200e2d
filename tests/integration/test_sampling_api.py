"""The real default model behind a real socket: every parameter does what it says."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.harness import sse_data

PROMPT = "The three laws of motion are"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GOLDEN = {"prompt": PROMPT, "max_tokens": 3, "seed": 7, "temperature": 1.0, "logprobs": 1}


def post(api, path="/v1/completions", **body):
    response = api.post(path, json=body)
    assert response.status_code == 200, response.text
    return json.loads(response.content, parse_constant=pytest.fail)


def complete(api, **body):
    """The one choice of a completion; greedy unless told otherwise."""
    (choice,) = post(api, **{"prompt": PROMPT, "temperature": 0, "return_token_ids": True, **body})["choices"]
    return choice


def stream(api, **body):
    """The one choice of a streamed completion, its chunks put together."""
    fields = {"prompt": PROMPT, "temperature": 0, "return_token_ids": True, "stream": True, **body}
    whole = {"text": "", "token_ids": [], "logprobs": None, "finish_reason": None}
    for chunk in sse_data(api.post("/v1/completions", json=fields).text):
        (choice,) = chunk["choices"]
        whole["text"] += choice["text"]
        whole["token_ids"] += choice.get("token_ids", [])
        whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
        for name, items in (choice["logprobs"] or {}).items():
            whole["logprobs"] = whole["logprobs"] or {}
            whole["logprobs"][name] = whole["logprobs"].get(name, []) + items
    return whole


def join(tokens):
    """The text of the tokens of a completion, where those that are no whole characters name their bytes."""
    parts = [
        bytes(int(byte, 16) for byte in re.findall(r"\\x([0-9a-f]{2})", token))
        if token.startswith("bytes:")
        else token.encode()
        for token in tokens
    ]
    return b"".join(parts).decode(errors="replace")


@pytest.fixture(scope="module")
def greedy(api):
    """What the model says by itself."""
    return complete(api, max_tokens=24, logprobs=5)


@pytest.fixture(scope="module")
def golden(api):
    return post(api, **GOLDEN)["choices"]


# Stop, length, finish reason


@pytest.mark.parametrize("include_stop", [False, True])
@pytest.mark.parametrize(("start", "length"), [(9, 4), (25, 2), (17, 12)])
def test_a_stop_string_cuts_text_and_arrays_alike(api, greedy, start, length, include_stop):
    stop = greedy["text"][start : start + length]
    end = greedy["text"].index(stop) + (len(stop) if include_stop else 0)
    body = {"stop": [stop, "no such text"], "include_stop_str_in_output": include_stop}
    whole = complete(api, max_tokens=24, logprobs=5, **body)
    streamed = stream(api, max_tokens=24, logprobs=5, **body)
    assert whole["text"] == streamed["text"] == greedy["text"][:end]
    assert whole["finish_reason"] == streamed["finish_reason"] == "stop"
    assert whole["token_ids"] == streamed["token_ids"] == greedy["token_ids"][: len(whole["token_ids"])]
    assert whole["logprobs"] == streamed["logprobs"]
    listed = len(whole["logprobs"]["tokens"])
    assert whole["logprobs"] == {name: items[:listed] for name, items in greedy["logprobs"].items()}
    assert join(whole["logprobs"]["tokens"]).startswith(whole["text"])
    assert join(whole["logprobs"]["tokens"][:-1]) in whole["text"]


def test_every_token_of_a_stream_comes_in_its_own_chunk(api, greedy):
    fields = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8, "stop": ["x" * 200], "stream": True}
    fields["speculation"] = {"mode": "off"}  # else a step may bring several
    *chunks, finish = sse_data(api.post("/v1/completions", json=fields).text)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == greedy["logprobs"]["tokens"][:8]
    assert finish["choices"][0]["finish_reason"] == "length"


def test_a_stop_inside_the_budget_is_a_stop_and_beyond_it_a_length(api, greedy):
    end = greedy["logprobs"]["tokens"][5]
    number = greedy["logprobs"]["tokens"].index(end) + 1
    stopped = post(api, prompt=PROMPT, temperature=0, max_tokens=number, stop=end)
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == number
    cut = post(api, prompt=PROMPT, temperature=0, max_tokens=number - 1, stop=end)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == number - 1


def test_end_tokens_min_tokens_and_ignore_eos(api, served_model):
    end = served_model.tokenizer.eos_token_id

    def ask(**body):
        return post(
            api, "/v1/chat/completions", messages=QUESTION, temperature=0, return_token_ids=True, **body
        )

    plain = ask(max_tokens=16)
    assert plain["choices"][0]["finish_reason"] == "stop"
    ids = plain["choices"][0]["token_ids"]
    assert ids[-1] == end
    assert plain["usage"]["completion_tokens"] == len(ids)
    longer = ask(max_tokens=len(ids) + 4, min_tokens=len(ids) + 2)["choices"][0]["token_ids"]
    assert len(longer) >= len(ids) + 2
    assert longer[: len(ids) - 1] == ids[:-1]
    assert end not in longer[: len(ids) + 2]
    on = ask(max_tokens=len(ids) + 2, ignore_eos=True)["choices"][0]
    assert on["token_ids"][: len(ids)] == ids
    assert on["finish_reason"] == "length"
    assert len(on["token_ids"]) == len(ids) + 2


def test_a_stop_token_is_shown_only_on_demand(api, greedy):
    stop_id = greedy["token_ids"][4]
    first = greedy["token_ids"].index(stop_id)
    hidden = complete(api, max_tokens=24, stop_token_ids=[stop_id], logprobs=0)
    assert hidden["text"] == "".join(greedy["logprobs"]["tokens"][:first])
    assert len(hidden["logprobs"]["tokens"]) == first
    kept = complete(api, max_tokens=24, stop_token_ids=[stop_id], include_stop_str_in_output=True)
    assert kept["text"] == "".join(greedy["logprobs"]["tokens"][: first + 1])
    assert kept["token_ids"] == hidden["token_ids"] == greedy["token_ids"][: first + 1]


def test_special_tokens_are_skipped_or_shown(api, served_model):
    end = served_model.tokenizer.eos_token_id
    forced = {"logit_bias": {str(end): 100}, "max_tokens": 3, "ignore_eos": True}
    assert complete(api, **forced)["text"] == ""
    shown = complete(api, **forced, skip_special_tokens=False, logprobs=0)
    assert shown["text"] == "".join(shown["logprobs"]["tokens"]) == "<|im_end|>" * 3
    assert shown["logprobs"]["text_offset"] == [0, 10, 20]


# Text


def test_random_bytes_stream_the_same_text(api, served_model):
    """Answers made of tokens that are no whole characters, with some that are in between."""
    tokenizer = served_model.tokenizer
    halves = [i for i in range(tokenizer.vocab_size) if not _is_text(tokenizer.token_bytes(i))]
    assert len(halves) > 100
    allowed = halves[:500] + tokenizer.encode("aé 😀東")
    body = {"allowed_token_ids": allowed, "temperature": 2.0, "max_tokens": 12, "logprobs": 2}
    for seed in range(3):
        whole = complete(api, **body, seed=seed)
        streamed = stream(api, **body, seed=seed)
        assert streamed == {name: whole[name] for name in streamed}
        assert whole["text"] == tokenizer.decode(whole["token_ids"])
        assert whole["text"] == join(whole["logprobs"]["tokens"])


def _is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_prompt_that_ends_inside_a_character_is_not_repeated(api, served_model):
    tokenizer = served_model.tokenizer
    half = next(ids for c in "東京都市学習猫犬鳥魚" if len(ids := tokenizer.encode(f"x {c}")) > 2)[:-1]
    assert not _is_text(tokenizer.decode_bytes(half))
    answer = complete(api, prompt=half, max_tokens=4)
    assert answer["text"] == tokenizer.decode(answer["token_ids"])
    echoed = complete(api, prompt=half, max_tokens=4, echo=True, logprobs=0)
    assert echoed["text"] == tokenizer.decode(half) + answer["text"]


def test_a_stream_of_words_keeps_its_spaces(api, greedy):
    assert stream(api, max_tokens=24)["text"] == greedy["text"]
    assert " " in greedy["text"]


# Logprobs


def test_logprobs_are_equal_however_the_answer_came_about(api):
    prompt = "A prompt that nobody sent before, long enough for a block or two of the cache: " + PROMPT
    body = {"prompt": prompt, "max_tokens": 6, "logprobs": 3, "temperature": 0.8, "seed": 11}
    cold = post(api, **body)
    warm = post(api, **body)
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] >= 16
    assert warm["choices"] == cold["choices"]
    streamed = stream(api, **body)
    assert streamed["logprobs"] == cold["choices"][0]["logprobs"]
    others = [{**body, "seed": seed, "top_p": 0.5, "logprobs": None} for seed in range(5)]
    with ThreadPoolExecutor(6) as pool:
        batched, *_ = pool.map(lambda fields: post(api, **fields), [body, *others])
    assert batched["choices"] == cold["choices"]
    shared = post(api, **{**body, "prompt": [prompt, PROMPT, prompt]})["choices"]
    assert shared[0]["logprobs"] == shared[2]["logprobs"] == cold["choices"][0]["logprobs"]


def test_chat_and_completion_logprobs_agree(api, served_model):
    answer = post(
        api,
        "/v1/chat/completions",
        messages=QUESTION,
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=2,
        return_token_ids=True,
    )
    completion = complete(api, prompt=answer["prompt_token_ids"], max_tokens=5, logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == completion["logprobs"]["tokens"]
    assert [entry["logprob"] for entry in content] == completion["logprobs"]["token_logprobs"]
    assert [bytes(entry["bytes"]).decode() for entry in content] == completion["logprobs"]["tokens"]
    for entry, top in zip(content, completion["logprobs"]["top_logprobs"], strict=True):
        assert {t["token"]: t["logprob"] for t in entry["top_logprobs"]}.items() <= top.items()


def test_echo_scores_every_token_cold_and_warm(api):
    text = "Ein Straßencafé in Zürich, 東京も良い, 😀! " * 2
    body = {"prompt": text, "max_tokens": 0, "echo": True, "logprobs": 1}
    cold = post(api, **body)
    (choice,) = cold["choices"]
    assert choice["text"] == text == join(choice["logprobs"]["tokens"])
    num_tokens = cold["usage"]["prompt_tokens"]
    assert [len(items) for items in choice["logprobs"].values()] == [num_tokens] * 4
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert all(logprob < 0 for logprob in choice["logprobs"]["token_logprobs"][1:])
    assert cold["usage"]["completion_tokens"] == 0
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        assert token.startswith("bytes:") or text[offset : offset + len(token)] == token
    complete(api, prompt=text, max_tokens=1)  # puts the prompt into the cache
    assert post(api, **body)["choices"] == [{**choice, "seed": pytest.approx(choice["seed"], abs=2**53)}]
    answered = complete(api, prompt=text, max_tokens=4, echo=True, logprobs=1)
    assert answered["logprobs"]["tokens"][:num_tokens] == choice["logprobs"]["tokens"]
    assert answered["logprobs"]["token_logprobs"][:num_tokens] == choice["logprobs"]["token_logprobs"]
    assert answered["text"] == join(answered["logprobs"]["tokens"])


def test_scores_of_a_prompt_are_those_of_the_answer_that_it_was(api, greedy):
    ids = greedy["prompt_token_ids"] + greedy["token_ids"]
    scored = complete(api, prompt=ids, max_tokens=0, echo=True, logprobs=5)["logprobs"]
    answer = greedy["logprobs"]["token_logprobs"]
    assert scored["token_logprobs"][-len(answer) :] == pytest.approx(answer, abs=1e-4)
    assert complete(api, prompt=ids, max_tokens=0, prompt_logprobs=5)["prompt_logprobs"][-1] is not None


def test_the_chosen_token_is_listed_even_outside_of_the_top(api):
    for num_top in (0, 1, 20):
        logprobs = complete(api, max_tokens=4, logprobs=num_top, temperature=2.0, seed=5)["logprobs"]
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            assert top[token] == logprob
            assert num_top <= len(top) <= num_top + 1


def test_bans_leave_no_infinity(api):
    """parse_constant fails on NaN and Infinity."""
    allowed = [100, 200, 300]
    body = {"allowed_token_ids": allowed, "max_tokens": 4, "logprobs": 20, "seed": 1}
    body |= {"temperature": 1.0, "top_p": 1.0}
    raw = complete(api, **body)["logprobs"]
    assert [len(top) for top in raw["top_logprobs"]] == [21] * 4
    processed = complete(api, **body, logprobs_mode="processed")["logprobs"]
    for top in processed["top_logprobs"]:
        assert len(top) == 3
        assert sum(map(math.exp, top.values())) == pytest.approx(1.0, abs=1e-5)
    chat = post(
        api,
        "/v1/chat/completions",
        messages=QUESTION,
        max_tokens=2,
        logprobs=True,
        top_logprobs=20,
        logit_bias={"5": -100},
        allowed_token_ids=[5],
        logprobs_mode="processed",
    )
    assert len(chat["choices"][0]["logprobs"]["content"]) == 2


# Sampling


def test_choices_differ_are_reproducible_and_do_not_overlap(api):
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 1.0, "n": 3}
    seven = [choice["text"] for choice in post(api, **body, seed=7)["choices"]]
    assert len(set(seven)) == 3
    assert [choice["text"] for choice in post(api, **body, seed=7)["choices"]] == seven
    assert complete(api, max_tokens=6, temperature=1.0, seed=7)["text"] == seven[0]
    eight = [choice["text"] for choice in post(api, **body, seed=8)["choices"]]
    assert not set(seven) & set(eight)


def test_a_mixed_batch_changes_nobodys_tokens(api):
    bodies = [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.7, "seed": 2, "top_k": 20, "presence_penalty": 1.0},
        {"temperature": 1.3, "seed": 3, "min_p": 0.05, "logit_bias": {"28": 5}, "bad_words": ["the"]},
        {"temperature": 1.0, "seed": 4, "typical_p": 0.5, "repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 5, "frequency_penalty": -1.0, "top_p": 0.8, "min_tokens": 5},
        {"temperature": 1.0, "allowed_token_ids": list(range(500, 900)), "seed": -1},
    ]
    fields = [{"prompt": PROMPT, "max_tokens": 6, **body} for body in bodies]
    alone = [post(api, **body)["choices"][0]["text"] for body in fields]
    with ThreadPoolExecutor(8) as pool:
        unseeded = pool.submit(post, api, prompt=PROMPT, max_tokens=6, temperature=1.5)
        together = list(pool.map(lambda body: post(api, **body)["choices"][0]["text"], fields))
    assert together == alone
    assert len(set(alone)) == len(alone)
    assert unseeded.result()["usage"]["completion_tokens"] == 6


def test_penalties_follow_their_formula(api, greedy):
    """Two allowed tokens, greedy: each step is worked out from scores of prompts and the counts so far."""
    first, second = greedy["token_ids"][0], greedy["token_ids"][3]
    assert first != second
    frequency, presence = 0.6, 0.4
    body = {"allowed_token_ids": [first, second], "max_tokens": 5}
    chosen = complete(api, **body, frequency_penalty=frequency, presence_penalty=presence)["token_ids"]
    so_far: list[int] = []
    for token_id in chosen:
        values = {}
        for candidate in (first, second):
            ids = [*greedy["prompt_token_ids"], *so_far, candidate]
            (score,) = complete(api, prompt=ids, max_tokens=0, prompt_logprobs=0)["prompt_logprobs"][
                -1
            ].values()
            count = so_far.count(candidate)
            values[candidate] = score["logprob"] - frequency * count - presence * (count > 0)
        assert token_id == max(values, key=values.get), values
        so_far.append(token_id)
    assert set(complete(api, **body, frequency_penalty=2.0, presence_penalty=2.0)["token_ids"]) == {
        first,
        second,
    }


def test_bias_bans_and_bad_words(api, greedy):
    assert complete(api, max_tokens=3, logit_bias={"100": 100})["token_ids"] == [100] * 3
    first = greedy["token_ids"][0]
    assert first not in complete(api, max_tokens=6, logit_bias={str(first): -100})["token_ids"]
    words = ["first", "law", "."]
    said = complete(api, max_tokens=12, bad_words=words)["text"]
    assert any(word in greedy["text"] for word in words)
    for word in words:
        assert f" {word} " not in f"{said} "


def test_repetition_penalty_makes_a_loop_end(api):
    prompt = "one two, one two, one two, one two,"
    assert complete(api, prompt=prompt, max_tokens=1)["text"] == " one"
    assert complete(api, prompt=prompt, max_tokens=1, repetition_penalty=2.0)["text"] not in (" one", " two")


@pytest.mark.parametrize(
    "body",
    [
        *({"temperature": 1e-45}, {"temperature": -0.0}, {"temperature": 1e-9}),
        *({"temperature": 1.0, "top_p": 1e-9}, {"temperature": 1.0, "top_k": 1}),
        *({"temperature": 2.0, "min_p": 1.0}, {"temperature": 0, "top_k": 2**40, "top_p": 1.0}),
    ],
)
def test_the_ends_of_the_ranges_are_greedy(api, greedy, body):
    assert complete(api, max_tokens=4, seed=3, **body)["token_ids"] == greedy["token_ids"][:4]


def test_filters_that_are_off_change_nothing(api):
    body = {"max_tokens": 5, "temperature": 1.0, "top_p": 1.0, "seed": 3}
    off = {"top_k": -1, "min_p": 0, "typical_p": 1, "repetition_penalty": 1.0}
    off |= {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "bad_words": [], "stop": []}
    assert complete(api, **body, **off)["token_ids"] == complete(api, **body)["token_ids"]
    assert complete(api, **body, top_k=10**9)["token_ids"] == complete(api, **body, top_k=0)["token_ids"]


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63), 0])
def test_the_ends_of_the_range_of_seeds(api, seed):
    body = {"max_tokens": 2, "temperature": 1.0, "seed": seed, "logprobs": 0}
    first = complete(api, **body)
    assert first["seed"] == seed
    assert complete(api, **body) == first


def test_best_of_is_the_likeliest_of_n(api):
    body = {"prompt": PROMPT, "max_tokens": 5, "temperature": 1.5, "seed": 2}
    every = post(api, **body, n=5, logprobs=0)["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["tokens"]) for c in every]
    ranked = [every[i]["text"] for i in sorted(range(5), key=lambda i: -means[i])]
    best = post(api, **body, n=2, best_of=5)
    assert [choice["text"] for choice in best["choices"]] == ranked[:2]
    assert best["usage"]["completion_tokens"] == 25


# Structured output

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_a_json_schema_holds_with_n_seeds_logprobs_and_streaming(api):
    body = {
        "messages": [{"role": "user", "content": "Invent a person."}],
        "max_tokens": 60,
        "temperature": 1.0,
        "seed": 5,
        "n": 2,
        "logprobs": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    }
    choices = post(api, "/v1/chat/completions", **body)["choices"]
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        person = json.loads(choice["message"]["content"])
        assert person.keys() == {"name", "age"}
        assert isinstance(person["age"], int)
        spelt = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"]).decode()
        assert spelt == choice["message"]["content"]
    texts = {0: "", 1: ""}
    for chunk in sse_data(api.post("/v1/chat/completions", json={**body, "stream": True}).text):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {choice["index"]: choice["message"]["content"] for choice in choices}


def test_choices_and_regular_expressions_hold(api):
    colour = complete(api, prompt="The sky is", structured_outputs={"choice": ["red", "green"]}, max_tokens=8)
    assert colour["text"] in ("red", "green")
    date = complete(
        api, structured_outputs={"regex": r"20[0-9]{2}-[01][0-9]"}, max_tokens=16, temperature=1.0, seed=1
    )
    assert re.fullmatch(r"20[0-9]{2}-[01][0-9]", date["text"])
    assert date["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "start: nothing"}},
    ],
)
def test_what_does_not_compile_is_a_400_that_names_the_field(api, body):
    response = api.post("/v1/completions", json={"prompt": "x", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(body))
    assert len(response.content) < 2000


# Hostile values


@pytest.mark.parametrize(
    "body",
    [
        b'"temperature": NaN',
        b'"temperature": Infinity',
        b'"temperature": 2.1',
        b'"temperature": 1e400',
        b'"temperature": -1e-45',
        b'"top_p": 0',
        b'"top_k": -2',
        b'"min_p": 1.1',
        b'"typical_p": 0',
        b'"frequency_penalty": -2.1',
        b'"repetition_penalty": 0',
        b'"repetition_penalty": -1',
        b'"logit_bias": {"49152": 1}',
        b'"logit_bias": {"-1": 1}',
        b'"logit_bias": {"5": 1e400}',
        b'"allowed_token_ids": [9223372036854775808]',
        b'"stop_token_ids": [49152]',
        b'"prompt": [49152]',
        b'"prompt": [-1]',
        b'"bad_words": ["\\ud800"]',
        b'"bad_words": ["\\u0004"]',
        b'"seed": 9223372036854775808',
        b'"n": 1000000',
        b'"best_of": 1000000',
        b'"logprobs": 101',
        b'"prompt_logprobs": 49152',
        b'"max_tokens": 1025',
        b'"max_tokens": 0',
        b'"min_tokens": 17',
    ],
)
def test_hostile_values_are_refused_and_harm_nobody(api, golden, body):
    prompt = b"" if body.startswith(b'"prompt":') else b'"prompt": "x", '
    content = b"{" + prompt + body + b"}"
    response = api.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert len(response.content) < 1000
    assert post(api, **GOLDEN)["choices"] == golden


ids = st.integers(0, 49151)
FIELDS = {
    "temperature": st.floats(0, 2),
    "top_p": st.floats(1e-6, 1),
    "top_k": st.integers(-1, 60_000),
    "min_p": st.floats(0, 1),
    "typical_p": st.floats(1e-6, 1),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.01, 10),
    "logit_bias": st.dictionaries(ids.map(str), st.floats(-100, 100), max_size=5),
    "allowed_token_ids": st.lists(ids, min_size=1, max_size=5),
    "bad_words": st.lists(st.sampled_from(["the", " a", "é", "東京", "<|im_end|>"]), max_size=3),
    "stop": st.lists(st.sampled_from(["e", " the", "東", "\n\n"]), max_size=2),
    "stop_token_ids": st.lists(ids, max_size=3),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "include_stop_str_in_output": st.booleans(),
    "min_tokens": st.integers(0, 2),
    "n": st.integers(1, 2),
    "best_of": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "logprobs": st.integers(0, 100),
    "prompt_logprobs": st.integers(0, 100),
    "logprobs_mode": st.sampled_from(["raw", "processed"]),
    "echo": st.booleans(),
    "return_token_ids": st.booleans(),
    "structured_outputs": st.sampled_from(
        [{"json_object": True}, {"regex": "[0-9]+"}, {"choice": ["ja", "nein"]}]
    ),
    "stream": st.booleans(),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_parameters_are_never_a_5xx_and_change_nobody_elses_answer(api, golden, data):
    names = data.draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=8))
    body = {"prompt": "x y", "max_tokens": 2, **{name: data.draw(FIELDS[name]) for name in sorted(names)}}
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(post, api, **GOLDEN)
        response = api.post("/v1/completions", json=body)
        assert beside.result()["choices"] == golden
    if response.status_code != 200:
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == "best_of"  # below n, or with a stream
    elif body.get("stream"):
        sse_data(response.text)
    else:
        json.loads(response.content, parse_constant=pytest.fail)
