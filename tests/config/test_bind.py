"""Options become frozen dataclasses, or a list of everything that is wrong with them."""

import dataclasses

import pytest

from gymlet.config.schema import AgentOptions, ProviderOptions, ServerRef, bind

GOOD = {"base_url": "https://x/v1", "api_key": "k", "model": "m"}


def test_binds_with_defaults():
    options, problems = bind(ProviderOptions, GOOD | {"entrypoint": "app.py", "domain": "math"}, where="w")
    assert problems == []
    assert options == ProviderOptions(base_url="https://x/v1", api_key="k", model="m")
    assert (options.num_concurrent_requests, options.extra_body, options.uses_reasoning_parser) == (1000, {}, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.model = "other"


def test_a_key_is_not_part_of_the_repr():
    options, _ = bind(ProviderOptions, GOOD | {"api_key": "sk-secret"}, where="w")
    assert "sk-secret" not in repr(options)


def test_all_mistakes_at_once():
    wrong = {"base_url": "together.xyz", "model": 3, "num_concurrent_requests": 0, "use_reasoning_parser": True}
    _, problems = bind(ProviderOptions, wrong, where="policy_model", sources=dict.fromkeys(wrong, "a.yaml"))
    assert sorted(map(str, problems)) == [
        "a.yaml: policy_model.api_key: is required",
        "a.yaml: policy_model.base_url: 'together.xyz' is no URL; it must begin with http:// or https:// and name a host",
        "a.yaml: policy_model.model: Expected `str`, got `int`",
        "a.yaml: policy_model.num_concurrent_requests: Expected `int` >= 1",
        "a.yaml: policy_model.use_reasoning_parser: unknown key; did you mean 'uses_reasoning_parser'?",
    ]


def test_references_are_dataclasses_too():
    ref = {"type": "responses_api_models", "name": "policy_model"}
    options, _ = bind(
        AgentOptions,
        {"model_server": ref, "resources_server": ref | {"type": "resources_servers"}},
        where="w",
    )
    assert options.model_server == ServerRef(type="responses_api_models", name="policy_model")


def test_white_space_around_a_key_is_not_part_of_it():
    options, problems = bind(ProviderOptions, {**GOOD, "api_key": " sk-1\n"}, where="p")
    assert (options.api_key, problems) == ("sk-1", [])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"api_key": "sk-1\nX-Injected: 1"}, "no HTTP header may have"),
        ({"base_url": "http://user:sk-1@x"}, "must not hold a user or a password"),
    ],
)
def test_what_cannot_be_sent_is_named_and_not_shown(wrong, words):
    _, (problem,) = bind(ProviderOptions, {**GOOD, **wrong}, where="p")
    assert words in str(problem)
    assert "sk-1" not in str(problem)


@pytest.mark.parametrize("setting", ["cache.db", "sqlite:", "redis:x"])
def test_a_cache_is_a_file_of_sqlite(setting):
    _, problems = bind(ProviderOptions, GOOD | {"cache": setting}, where="p")
    assert [str(problem) for problem in problems] == [f"p.cache: '{setting}' must be sqlite:PATH"]
