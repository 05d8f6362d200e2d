"""A model's own sampling defaults give the answers that the same values in a request give."""

import json

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.interface.pooling import Pooling
from server.loading import load_served_model
from server.settings import ServeSettings
from tests.engine.checkpoint.conftest import VOCABULARY, GGUFRecipe
from tests.engine.checkpoint.test_huggingface import LLAMA, edit_json, write_tokenizer
from tests.server.harness import serving_model

DEFAULTS = {
    "temperature": 0.2,
    "top_k": 3,
    "top_p": 0.3,
    "min_p": 0.7,
    "typical_p": 0.2,
    "repetition_penalty": 5.0,
}
GGUF_NAMES = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SEEDS = range(4)
CASES = [
    *(("folder", {name: value}) for name, value in DEFAULTS.items()),
    *(
        ("gguf", {name: value}) for name, value in DEFAULTS.items() if name != "typical_p"
    ),  # it has no such key
    ("folder", DEFAULTS),
    ("gguf", {name: value for name, value in DEFAULTS.items() if name != "typical_p"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA, initializer_range=0.3)).save_pretrained(path)
    write_tokenizer(path)
    edit_json(path / "tokenizer_config.json", chat_template=TEMPLATE)
    return path


def write_model(kind, defaults, folder, tmp_path):
    """Write the same model with these defaults and return its path."""
    if kind == "folder":
        path = tmp_path / "model"
        path.mkdir()
        for file in folder.iterdir():
            (path / file.name).symlink_to(file)
        (path / "generation_config.json").unlink(missing_ok=True)
        (path / "generation_config.json").write_text(json.dumps(defaults))
        return path
    recipe = GGUFRecipe("llama", gguf.GGMLQuantizationType.F32)
    tokens = ["AB" if token == "ab" else token for token in VOCABULARY]
    recipe.tokenizer |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["A B"]}
    recipe.tokenizer["tokenizer.chat_template"] = TEMPLATE
    recipe.general = {
        f"general.sampling.{GGUF_NAMES.get(name, name)}": value for name, value in defaults.items()
    }
    return recipe.write(tmp_path / "model.gguf")


def answers(path, *bodies):
    """Answers of both endpoints, by body, for all seeds."""
    settings = ServeSettings(model=str(path), kv_cache_memory=2**22, speculation="off", max_model_len=64)
    model = load_served_model(settings)
    prompts = {
        "/v1/completions": {"prompt": "ABAB"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "ABAB"}]},
    }
    try:
        with serving_model(model) as client:
            return [
                [
                    client.post(url, json={**prompt, **body, "seed": seed, **OPTIONS}).json()["choices"][0][
                        "token_ids"
                    ]
                    for url, prompt in prompts.items()
                    for seed in SEEDS
                ]
                for body in bodies
            ]
    finally:
        model.engine.close()


OPTIONS = {"max_tokens": 12, "ignore_eos": True, "return_token_ids": True}


@pytest.mark.parametrize(
    ("kind", "defaults"), CASES, ids=[f"{kind}-{'-'.join(defaults)[:30]}" for kind, defaults in CASES]
)
def test_a_default_is_the_same_as_the_value_in_the_request(kind, defaults, folder, tmp_path):
    (tmp_path / "plain").mkdir()
    plain, given = answers(write_model(kind, {}, folder, tmp_path / "plain"), {}, defaults)
    assert plain != given, "the parameter must change an answer"
    off = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "repetition_penalty": 1}
    own, null, overridden = answers(
        write_model(kind, defaults, folder, tmp_path), {}, dict.fromkeys(defaults), off
    )
    assert own == null == given
    assert overridden == plain


def test_do_sample_false_is_greedy_unless_the_request_has_a_temperature(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    greedy, warm = answers(
        write_model("folder", {}, folder, tmp_path / "plain"),
        {"temperature": 0},
        {"temperature": 0.9, "top_k": 5},
    )
    defaults = {"do_sample": False, "temperature": 0.5, "top_k": 5}
    own, given = answers(write_model("folder", defaults, folder, tmp_path), {}, {"temperature": 0.9})
    assert (own, given) == (greedy, warm)


MODULES = [{"path": "", "type": "m.Transformer"}, {"path": "1_Pooling", "type": "m.Pooling"}]


@pytest.mark.parametrize(
    ("pooling", "modules", "mode", "expected"),
    [
        ("auto", None, None, Pooling.LAST),
        ("auto", MODULES, "mean_tokens", Pooling.MEAN),
        ("last", MODULES, "mean_tokens", Pooling.LAST),
        ("auto", MODULES, "cls_token", "embeddings need its pooling cls_token, which is not supported"),
        ("mean", MODULES, "cls_token", Pooling.MEAN),
        ("auto", [*MODULES, {"path": "2", "type": "m.Dense"}], "mean_tokens", "its module Dense"),
        ("off", None, None, "--pooling off"),
    ],
)
def test_how_the_model_pools(pooling, modules, mode, expected, folder, tmp_path):
    path = write_model("folder", {}, folder, tmp_path)
    if modules is not None:
        (path / "modules.json").write_text(json.dumps(modules))
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    model = load_served_model(ServeSettings(model=str(path), kv_cache_memory=2**22, pooling=pooling))
    model.engine.close()
    if isinstance(expected, Pooling):
        assert model.embedding is not None
        assert (model.embedding.pooling, model.embedding.hidden_size) == (expected, LLAMA["hidden_size"])
    else:
        assert model.embedding is None
        assert expected in model.why_no_embeddings
