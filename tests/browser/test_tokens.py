"""The views of tokens: bars as the sampler has them, provenance and cache as usage, branches as served."""

import base64
import itertools
import random

import numpy as np
import pytest
import torch

from engine.interface.sampling_params import SamplingParams
from engine.sampling.sampler import apply_filters
from tests.browser.test_chat import use

PROMPT = "The weather today is"


@pytest.fixture(scope="module")
def logprobs(server):
    reply = server.post("/v1/distribution", json={"prompt": PROMPT}).json()
    return torch.from_numpy(np.frombuffer(base64.b64decode(reply["logprobs"]), "<f4").copy())


def random_settings(rng: random.Random) -> dict[str, float]:
    return {
        "temperature": rng.choice([0, 0.01, round(rng.uniform(0.05, 2), 2), 1, 2]),
        "topK": rng.choice([0, 1, rng.randrange(1, 101), rng.randrange(1, 60000)]),
        "topP": rng.choice([1, 0.01, round(rng.uniform(0.01, 1), 2), 0.999]),
        "minP": rng.choice([0, 1, round(rng.uniform(0, 0.3), 2), round(rng.uniform(0, 1), 2)]),
    }


def sampler_probabilities(logprobs: torch.Tensor, setting: dict[str, float]) -> torch.Tensor:
    """What the server would draw from."""
    if setting["temperature"] == 0:
        return torch.nn.functional.one_hot(logprobs.argmax(), len(logprobs)).double()
    params = SamplingParams(
        temperature=setting["temperature"],
        top_k=setting["topK"],
        top_p=setting["topP"],
        min_p=setting["minP"],
    )
    return apply_filters(logprobs[None].clone(), [params])[0].double().softmax(dim=-1)


def test_the_pages_filters_are_the_samplers_for_100_random_settings(page, logprobs):
    page.open("tokens")
    settings = [random_settings(random.Random(number)) for number in range(100)]
    found = page.run(
        "const { decodeRow, order, applyFilters } = await import('/static/playground/sampler.js');"
        "const row = decodeRow(args[0]); const ranked = order(row);"
        "return args[1].map((setting) => { const result = applyFilters(row, ranked, setting);"
        "  const kept = Array.from(ranked.subarray(0, Math.min(result.numKept, 200)));"
        "  return { numKept: result.numKept, kept, shares: kept.map((_, rank) => result.after(rank)) }; });",
        base64.b64encode(logprobs.numpy().tobytes()).decode(),
        settings,
    )
    for setting, one in zip(settings, found, strict=True):
        expected = sampler_probabilities(logprobs, setting)
        # A nucleus is summed in float32 there and in float64 here: its last token may be another one.
        scaled = (logprobs.double() / max(setting["temperature"], 1e-9)).softmax(dim=-1)
        rank = scaled.sort(descending=True).values
        difference = abs(one["numKept"] - int((expected > 0).sum()))
        at = min(one["numKept"], len(rank) - 1)
        assert difference == 0 or float(rank[at]) * difference < 1e-5, setting
        shares = torch.tensor(one["shares"], dtype=torch.float64)
        torch.testing.assert_close(shares, expected[one["kept"]], rtol=2e-4, atol=1e-6)


def test_the_bars_show_what_the_sliders_say(page, logprobs):
    page.open("completion")
    page.set(".prompt textarea", PROMPT)
    use(page, max_tokens=3, temperature=1)
    page.click("Generate")
    page.click("Tokens", ".answer")
    page.one(".answer [role=option]").click()
    for label, value in (("temperature", 0.7), ("top-k", 12), ("top-p", 0.8), ("min-p", 0.05)):
        page.set(f".distribution input[aria-label='{label} slider']", value)
    setting = {"temperature": 0.7, "topK": 12, "topP": 0.8, "minP": 0.05}
    expected = sampler_probabilities(logprobs, setting)
    num_kept = int((expected > 0).sum())
    page.wait(lambda: page.all(f".bars[data-num-kept='{num_kept}']"), f"{num_kept} tokens to be kept")
    bars = page.all(".bars:first-of-type .bar")
    assert len(bars) == 20
    for bar in bars:
        token_id, share = int(bar.get_attribute("data-token-id")), float(bar.get_attribute("data-after"))
        assert share == pytest.approx(float(expected[token_id]), abs=1e-5)
        assert ("is-cut" in bar.get_attribute("class")) == (expected[token_id] == 0)
    assert [int(bar.get_attribute("data-token-id")) for bar in bars] == logprobs.topk(20).indices.tolist()
    page.click("Use these for the next answer")
    kept = page.stored()["settings"]
    assert (kept["temperature"], kept["top_k"], kept["top_p"], kept["min_p"]) == (0.7, 12, 0.8, 0.05)


@pytest.mark.parametrize("view", ["chat", "completion"])
def test_a_branch_goes_on_as_the_server_would(page, server, view):
    page.open(view)
    use(page, max_tokens=24, temperature=0.9, seed=3)
    if view == "chat":
        page.say("Describe the sea.")
        page.wait_for_answer()
    else:
        page.set(".prompt textarea", "The sea is")
        page.click("Generate")
    page.click("Tokens", ".answer")
    page.nth(4, ".answer [role=option]").click()
    page.wait(lambda: page.all(".bar button"), "the bars")
    token_id = int(page.all(".bar:has(button)")[0].get_attribute("data-token-id"))
    page.all(".bar button")[0].click()
    variants = page.answers if view == "chat" else lambda: page.stored()["completion"]["variants"]
    page.wait(lambda: len(variants()) == 2 and variants()[1]["usage"], "the branch")
    first, branch = variants()
    given = [*first["tokenIds"][:4], token_id]
    body = {"prompt": [*first["promptTokenIds"], *given], "max_tokens": 19, "temperature": 0.9, "seed": 3}
    reply = server.post("/v1/completions", json={**body, "return_token_ids": True}).json()["choices"][0]
    assert branch["tokenIds"] == [*given, *reply["token_ids"]]
    assert branch["text"] == branch["givenText"] + reply["text"]
    assert "branched" in page.text()
    assert branch["provenance"][4]["source"] == "you"


def test_provenance_and_cache_are_what_usage_says(page):
    page.open()
    use(page, max_tokens=120, temperature=0, speculation="ngram")
    page.say("Repeat word for word: red apples grow in the garden, green pears grow in the garden.")
    page.wait_for_answer()
    page.say("Again, the same words.")
    page.wait_for_answer(2)
    [answer] = page.answers()
    speculation = answer["usage"]["draftline"]["speculation"]
    last = ".message:last-child"
    page.click("Provenance", last)
    page.one(f"{last} .cache")
    accepted = len(page.all(f"{last} [aria-label='Tokens of the answer'] .source-ngram"))
    assert accepted == speculation["accepted"] > 0
    assert f"accepted {accepted} of {speculation['drafted']} proposed" in page.one(f"{last} .figures").text
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    page.one(f"{last} .cache summary").click()
    assert len(page.all(f"{last} [aria-label='Tokens of the prompt'] .is-cached")) == cached
    assert (
        len(page.all(f"{last} [aria-label='Tokens of the prompt'] .token"))
        == answer["usage"]["prompt_tokens"]
    )
    end = answer["usage"]["draftline"]["cache"]["end"]
    assert end["position"] == cached
    assert page.one(f"{last} .cache").get_attribute("data-end") == end["reason"]
    steps = [entry["step"] for entry in answer["provenance"]]
    boundaries = 1 + sum(a != b for a, b in itertools.pairwise(steps))
    assert len(page.all(f"{last} [aria-label='Tokens of the answer'] .begins-step")) == boundaries


def test_where_the_cached_prefix_ends_is_told_with_both_texts(page):
    page.open("completion")
    use(page, max_tokens=2)
    for ending in ("a quiet river runs slowly", "a quiet river runs slowly", "a quiet meadow lies there"):
        page.set(".prompt textarea", f"Behind the old mill, {ending}")
        page.click("Generate")
        page.wait(lambda: page.button("Generate"), "the end")
    page.click("Provenance", ".answer")
    sentence = page.one(".cache p").text
    assert '" river"' in sentence
    assert '" meadow"' in sentence


def test_any_text_is_shown_as_its_tokens_with_bytes_and_surprise(page, server):
    page.open("tokens")
    text = "Ab 😀\nüü"
    page.set("textarea", text)
    ids = server.post("/tokenize", json={"prompt": text}).json()["tokens"]
    page.wait(
        lambda: (
            len(page.all("[role=option]")) == len(ids) and str(len(ids)) in page.one("[role=status]").text
        ),
        "tokens",
    )
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    scores = server.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
    scored = page.run("return (await import('/static/playground/answers.js')).scoreTokens(args[0])", ids)
    assert [token["id"] for token in scored] == ids
    assert [token["logprob"] for token in scored] == scores
    assert bytes(byte for token in scored for byte in token["bytes"]).decode() == text
    page.click("Surprise")
    bits = -sum(scores[1:]) / np.log(2) / (len(scores) - 1)
    assert f"{bits:.2f} bits each" in page.one(".sum").text
    assert any(
        option.get_attribute("aria-label").startswith("bytes f0")
        or "f0" in option.get_attribute("aria-label")
        for option in page.all("[role=option]")
    )


def test_tokens_are_walked_through_with_the_keyboard(page):
    page.open("tokens")
    page.wait(lambda: len(page.all("[role=option]")) > 10, "tokens")

    def press(*keys):
        for key in keys:
            page.driver.switch_to.active_element.send_keys(key)

    page.driver.execute_script("document.querySelector('[role=option][tabindex=\"0\"]').focus()")
    press("\ue014", "\ue014", "\ue012")  # right, right, left
    assert page.driver.switch_to.active_element == page.all("[role=option]")[1]
    card = page.one("[role=tooltip]").text
    assert "probability" in card
    press("\ue010")  # end
    assert page.driver.switch_to.active_element == page.all("[role=option]")[-1]
    press("\ue007")  # enter
    assert len(page.one(".bars").find_elements("css selector", ".bar")) == 20
    assert [option.get_attribute("tabindex") for option in page.all("[role=option]")].count("0") == 1
