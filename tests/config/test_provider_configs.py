"""Every config that comes along composes, and the providers' are exactly these."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from gymlet.config.compose import compose
from gymlet.config.schema import ProviderOptions, bind
from gymlet.serve.plugins import load
from scripts.providers_page import PAGE, page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "responses_api_models" / "inference_provider" / "configs"
ENV = "policy_api_key: key-1\npolicy_model_name: model-1\npolicy_base_url: https://mine.example/v1\n"
URLS = {
    "baseten": "https://inference.baseten.co/v1",
    "deepinfra": "https://api.deepinfra.com/v1/openai",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "friendli": "https://api.friendli.ai/serverless/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "hf_inference": "https://router.huggingface.co/v1",
    "nebius": "https://api.tokenfactory.nebius.com/v1/",
    "openrouter": "https://openrouter.ai/api/v1",
    "together": "https://api.together.xyz/v1",
    "inference_provider": "https://mine.example/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "cerebras": "https://api.cerebras.ai/v1",
    "sambanova": "https://api.sambanova.ai/v1",
    "xai": "https://api.x.ai/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "zai": "https://api.z.ai/api/paas/v4",
    "minimax": "https://api.minimax.io/v1",
    "dashscope": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
    "vllm": "http://127.0.0.1:8000/v1",
    "sglang": "http://127.0.0.1:30000/v1",
    "llamacpp": "http://127.0.0.1:8080/v1",
    "ollama": "http://127.0.0.1:11434/v1",
    "lmstudio": "http://127.0.0.1:1234/v1",
}
PARAMETERS = {"base_url", "api_key", "model", "uses_reasoning_parser", "num_concurrent_requests", "extra_body"}


@pytest.mark.parametrize(("name", "base_url"), URLS.items(), ids=URLS)
def test_a_providers_config(name, base_url, tmp_path):
    (tmp_path / "env.yaml").write_text(ENV)
    path = f"responses_api_models/inference_provider/configs/{name}.yaml"
    composition = compose("ng_run", [f"+config_paths=[{path}]"], cwd=tmp_path)
    (plugin,), problems = load(composition.instances, [ROOT])
    assert (problems, plugin.instance.name) == ([], "policy_model")
    assert isinstance(plugin.options, ProviderOptions)
    assert (plugin.options.base_url, plugin.options.api_key, plugin.options.model) == (base_url, "key-1", "model-1")
    assert len((FOLDER / f"{name}.yaml").read_text().splitlines()) <= 15


@pytest.mark.parametrize("name", URLS)
def test_the_documented_parameters_alone_are_enough(name):
    options = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["policy_model"]["responses_api_models"]
    given = {key: value for key, value in options["inference_provider"].items() if key in PARAMETERS}
    bound, problems = bind(ProviderOptions, given | {"base_url": URLS[name]}, where="policy_model")
    assert (problems, bound.num_concurrent_requests) == ([], 1000)


def test_a_typo_in_a_profile_key_has_a_suggestion():
    given = {"base_url": "http://x/v1", "api_key": "k", "model": "m", "reasonin_out": "none", "efort": "none"}
    _, problems = bind(ProviderOptions, given, where="policy_model")
    said = [str(problem) for problem in problems]
    assert "did you mean 'reasoning_out'?" in said[0]
    assert "did you mean 'effort'?" in said[1]


def test_the_page_of_providers_is_written_from_the_configs():
    assert PAGE.read_text() == page(PAGE.read_text()), "run make providers"


def test_the_page_explains_every_key():
    pages = (PAGE, PAGE.with_name("reliability.md"), PAGE.with_name("cache.md"))
    explained = {key for page in pages for key in re.findall(r"`(\w+)`", page.read_text())}
    assert {each.name for each in dataclasses.fields(ProviderOptions)} <= explained


def test_no_config_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(URLS)


@pytest.mark.parametrize(
    "path", [str(path.relative_to(ROOT)) for path in ROOT.glob("resources_servers/*/configs/*.yaml")]
)
def test_an_environments_config_composes_with_a_model(path, tmp_path):
    (tmp_path / "env.yaml").write_text(ENV)
    model = "responses_api_models/inference_provider/configs/together.yaml"
    composition = compose("ng_run", [f"+config_paths=[{path},{model}]"], cwd=tmp_path)
    _, problems = load(composition.instances, [ROOT])
    assert problems == []
