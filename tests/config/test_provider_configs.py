"""Every config that comes along composes, and the providers' are exactly these."""

from pathlib import Path

import pytest

from gymlet.config.compose import compose
from gymlet.config.schema import ProviderOptions
from gymlet.serve.plugins import load

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
}


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
