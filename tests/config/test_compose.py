"""How files, env.yaml and the command line become one configuration."""

import os

import pytest

from gymlet.config.compose import compose, require_instances
from gymlet.config.problems import ConfigError
from gymlet.config.secrets import hide_secrets

SERVER = {"responses_api_models": {"c": {"entrypoint": "app.py"}}}


@pytest.fixture
def composed(tmp_path):
    """Write files, compose them: ``composed({"a.yaml": "a: 1"}, "+b=2")``."""

    def run(files, *overrides, command="ng_run"):
        for name, text in files.items():
            (tmp_path / name).write_text(text.replace("$TMP", str(tmp_path)))
        return compose(command, [override.replace("$TMP", str(tmp_path)) for override in overrides], cwd=tmp_path)

    return run


def subset(tree, expected):
    return {key: tree.get(key) for key in expected}


MERGES = {
    "a file overrides the one it pulls in": (
        {"one.yaml": "config_paths: [two.yaml]\na: 1\n", "two.yaml": "a: 2\nb: 2\n"},
        ["+config_paths=[one.yaml]"],
        {"a": 1, "b": 2, "config_paths": ["one.yaml", "two.yaml"]},
    ),
    "a later file wins": (
        {"one.yaml": "a: 1\nb: 1\n", "two.yaml": "a: 2\n"},
        ["+config_paths=[one.yaml,two.yaml]"],
        {"a": 2, "b": 1},
    ),
    "a later file's subtree wins, however deep": (
        {
            "one.yaml": "config_paths: [one_in.yaml]\n",
            "one_in.yaml": "x: one\n",
            "two.yaml": "config_paths: [two_mid.yaml]\n",
            "two_mid.yaml": "config_paths: [two_in.yaml]\n",
            "two_in.yaml": "x: two\n",
        },
        ["+config_paths=[one.yaml,two.yaml]"],
        {"x": "two", "config_paths": ["one.yaml", "two.yaml", "one_in.yaml", "two_mid.yaml", "two_in.yaml"]},
    ),
    "mappings are merged, lists replaced": (
        {"one.yaml": "m: {a: 1, b: 1}\nl: [1, 2]\n", "two.yaml": "m: {b: 2}\nl: [3]\n"},
        ["+config_paths=[one.yaml,two.yaml]"],
        {"m": {"a": 1, "b": 2}, "l": [3]},
    ),
    "env.yaml overrides files": ({"one.yaml": "a: 1\n", "env.yaml": "a: 2\n"}, ["+config_paths=[one.yaml]"], {"a": 2}),
    "the command line overrides all": (
        {"one.yaml": "a: 1\n", "env.yaml": "a: 2\n"},
        ["+config_paths=[one.yaml]", "+a=3", "++m.b=[1,x]"],
        {"a": 3, "m": {"b": [1, "x"]}},
    ),
    "a known key needs no plus": ({"one.yaml": "a: {b: 1}\n"}, ["+config_paths=[one.yaml]", "a.b=2"], {"a": {"b": 2}}),
    "a tilde deletes": ({"one.yaml": "a: 1\nb: 2\n"}, ["+config_paths=[one.yaml]", "~a"], {"a": None, "b": 2}),
    "env.yaml may name the files": ({"one.yaml": "a: 1\n", "env.yaml": "config_paths: [one.yaml]\n"}, [], {"a": 1}),
    "a file named twice is loaded once": ({"one.yaml": "a: 1\n"}, ["+config_paths=[one.yaml,one.yaml]"], {"config_paths": ["one.yaml"]}),
    "interpolation": ({"one.yaml": "a: {b: 3}\nx: ${a.b}\n"}, ["+config_paths=[one.yaml]"], {"x": 3}),
    "the environment": ({"one.yaml": "x: ${oc.env:HOME}\n"}, ["+config_paths=[one.yaml]"], {"x": os.environ["HOME"]}),
    "inheriting moves": ({"one.yaml": "t: ${inherit_from:s}\ns: {a: 1}\n"}, ["+config_paths=[one.yaml]"], {"t": {"a": 1}, "s": None}),
    "several may inherit from one": (
        {"one.yaml": "t: ${inherit_from:s}\nu: {_inherit_from: s, a: 2}\ns: {a: 1, b: 1}\n"},
        ["+config_paths=[one.yaml]"],
        {"t": {"a": 1, "b": 1}, "u": {"a": 2, "b": 1}, "s": None},
    ),
    "copying leaves the source": (
        {"one.yaml": "t: {_copy: s, b: {c: 2}}\ns: {a: 1, b: {c: 1, d: 1}}\n"},
        ["+config_paths=[one.yaml]"],
        {"t": {"a": 1, "b": {"c": 2, "d": 1}}, "s": {"a": 1, "b": {"c": 1, "d": 1}}},
    ),
    "keys are deleted after a merge": (
        {"one.yaml": "t: {_copy: s, _delete_key: 'a, b.c'}\ns: {a: 1, b: {c: 1, d: 1}}\n"},
        ["+config_paths=[one.yaml]"],
        {"t": {"b": {"d": 1}}},
    ),
    "an unset value in a deleted branch is none": (
        {"one.yaml": "t: {_copy: s, _delete_key: a}\ns: {a: 1}\n", "two.yaml": "t: {a: '???'}\n"},
        ["+config_paths=[one.yaml,two.yaml]"],
        {"t": {}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "overrides", "expected"), MERGES.values(), ids=MERGES)
def test_merges(composed, files, overrides, expected):
    assert subset(composed(files, *overrides).tree, expected) == expected


MODEL = "policy_model: {responses_api_models: {inference_provider: {entrypoint: app.py, api_key: '${policy_api_key}', model: '???'}}}\n"
AGENT = "agent: {responses_api_agents: {simple: {entrypoint: app.py, model_server: {type: responses_api_models, name: polcy_model}}}}\n"
MISTAKES = {
    "a missing file": (
        {"two.yaml": ""},
        ["+config_paths=[$TMP/tow.yaml]"],
        ["'$TMP/tow.yaml' is not there; is it spelled correctly? did you mean 'two.yaml'?", "looked for:\n    $TMP/tow.yaml"],
    ),
    "several missing files at once": ({}, ["+config_paths=[x/a.yaml,x/b.yaml]"], ["x/a.yaml", "x/b.yaml", "$TMP/x/a.yaml"]),
    "malformed YAML": ({"bad.yaml": "a: [1, 2\nb: : :\n"}, ["+config_paths=[bad.yaml]"], ["bad.yaml: Malformed YAML at line", "column"]),
    "a malformed env.yaml": ({"env.yaml": "key: [oops\n"}, [], ["env.yaml: Malformed YAML at line"]),
    "YAML that is no mapping": ({"bad.yaml": "- 1\n"}, ["+config_paths=[bad.yaml]"], ["must hold a mapping"]),
    "config_paths that are no list": ({}, ["+config_paths=a.yaml"], ["config_paths: must be a list, for example [a.yaml]"]),
    "all that is unset, together": (
        {"one.yaml": MODEL + "items: [a, '???']\nnested: [{k: '???'}]\n"},
        ["+config_paths=[one.yaml]"],
        [
            "3 required values are not set (???):",
            "policy_model.responses_api_models.inference_provider.model (one.yaml); give it: ++policy_model.responses",
            "items[1]",
            "nested[0].k",
            "1 key is referred to and set nowhere:\n    policy_api_key, for policy_model.responses_api_models.inference_provider.api_key",
            "put into env.yaml in the working directory, the place for keys:\n    policy_api_key: <value>",
            "or give on the command line: ++policy_api_key=<value>",
        ],
    ),
    "an unset source": ({"one.yaml": "t: ${inherit_from:s.model.name}\ns: {model: '???'}\n"}, ["+config_paths=[one.yaml]"], ["    t (one.yaml)"]),
    "a source that is not there": ({"one.yaml": "t: {_copy: s.x}\ns: {a: 1}\n"}, ["+config_paths=[one.yaml]"], ["t: refers to 's.x', and there is no 'x' there"]),
    "a source in a circle": ({"one.yaml": "t: {_copy: u}\nu: {_copy: t}\n"}, ["+config_paths=[one.yaml]"], ["refers to itself"]),
    "a reference to nobody": (
        {"one.yaml": MODEL.replace("'???'", "m") + AGENT},
        ["+config_paths=[one.yaml]", "+policy_api_key=x"],
        ["agent.responses_api_agents.simple.model_server: there is no responses_api_models instance 'polcy_model'; did you mean 'policy_model'?"],
    ),
    "an almost-server": (
        {"one.yaml": "s: {resources_servers: {x: {entrypoint: app.py, domain: mathh}}}\n"},
        ["+config_paths=[one.yaml]"],
        ["1 validation errors in almost-server blocks", "s.resources_servers.x.domain: 'mathh' is no domain; did you mean 'math'?"],
    ),
    "an instance without an entrypoint": ({"one.yaml": "s: {resources_servers: {x: {a: 1}}}\n"}, ["+config_paths=[one.yaml]"], ["s.resources_servers.x.entrypoint: is required"]),
    "an unknown key on the command line": ({}, ["head_server.prot=1"], ["head_server.prot: there is no such key; did you mean 'head_server.port'? (to add a new one, write +head_server.prot=…)"]),
    "a command line that cannot be read": ({}, ["+config_paths=[a.yaml"], ["'+config_paths=[a.yaml' cannot be read", "quote the whole argument"]),
    "words that are no override": ({}, ["together"], ["'together' cannot be read"]),
    "a key that is a number": ({}, ["head_server.api_key=7"], ["head_server.api_key: Expected `str | array | null`, got `int`"]),
    "a port that is none": ({}, ["head_server.port=99999"], ["head_server.port: Expected `int` <= 65535"]),
}  # fmt: skip


@pytest.mark.parametrize(("files", "overrides", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_with_place_and_remedy(composed, tmp_path, files, overrides, words):
    with pytest.raises(ConfigError) as caught:
        composed(files, *overrides)
    for expected in words:
        assert expected.replace("$TMP", str(tmp_path)) in str(caught.value)


def test_an_almost_server_may_be_left_out(composed):
    found = composed(
        {"one.yaml": "s: {resources_servers: {x: {a: 1}}}\n"},
        "+config_paths=[one.yaml]",
        "error_on_almost_servers=false",
    )
    assert found.instances == ()
    assert "Almost-Server" in found.notes[0]


def test_environment_servers_are_accepted_with_a_note(composed):
    found = composed({"one.yaml": "s: {environment_servers: {x: {a: 1}}}\n"}, "+config_paths=[one.yaml]")
    assert "not needed here" in found.notes[0]


def test_no_instance_is_an_error(composed):
    with pytest.raises(ConfigError, match="no server instance is configured"):
        require_instances(composed({}))


def test_sources_say_where_each_value_came_from(composed, tmp_path):
    found = composed({"one.yaml": "a: 1\nb: {c: 1}\n", "env.yaml": "d: 1\n"}, "+config_paths=[one.yaml]", "++b.c=2")
    keys = ("a", "b.c", "d", "head_server.port")
    expected = ("one.yaml", "the command line", str(tmp_path / "env.yaml"), "conf/ng_run.yaml")
    assert tuple(found.sources[key] for key in keys) == expected


def test_agents_inherit_the_defaults_of_the_top_level(composed):
    files = {"one.yaml": "skip_verification: true\n" + AGENT.replace("polcy", "policy") + MODEL.replace("'???'", "m")}
    found = composed(files, "+config_paths=[one.yaml]", "+policy_api_key=x")
    options = {instance.name: instance.options for instance in found.instances}
    assert options["agent"]["skip_verification"] is True
    assert "skip_verification" not in options["policy_model"]


@pytest.mark.parametrize("override", ["+policy_api_key=sk-123456", "head_server.api_key=[sk-123456,sk-2]"])
def test_a_key_on_the_command_line_is_warned_of_and_not_repeated(composed, override):
    notes = composed({}, override).notes
    assert "others on this machine can see it" in notes[0]
    assert "123456" not in notes[0]


def test_extra_roots_come_first(composed, tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    (root / "one.yaml").write_text("a: root\n")
    monkeypatch.setenv("NEMO_GYM_EXTRA_ROOTS", str(root))
    assert composed({"one.yaml": "a: cwd\n"}, "+config_paths=[one.yaml]").tree["a"] == "root"


def test_keys_in_lists_and_headers_are_hidden():
    tree = {
        "api_key": ["sk-123456", {"key": "sk-abcdef", "weight": 2}, ["sk-nested"]],
        "head_server": {"api_key": ["short"]},
        "headers": {"Authorization": "Bearer 987654", "Cookie": "a=1", "Accept": "x"},
        "copy": "sk-123456 sk-abcdef sk-nested Bearer 987654",
        "key_unset": "???",
    }
    assert hide_secrets(tree) == {
        "api_key": ["****", {"key": "****", "weight": 2}, ["****"]],
        "head_server": {"api_key": ["****"]},
        "headers": {"Authorization": "****", "Cookie": "****", "Accept": "x"},
        "copy": "**** **** **** ****",
        "key_unset": "???",
    }


def test_keys_in_urls_are_hidden():
    tree = {
        "base_url": "https://x/v1?api-version=2026-01-01&api-key=sk-123456#a",
        "copy": "sk-123456",
        "what": "key?key=abcdef",
    }
    assert hide_secrets(tree) == {
        "base_url": "https://x/v1?api-version=2026-01-01&api-key=****#a", "copy": "****", "what": "key?key=abcdef"
    }  # fmt: skip


def test_secrets_are_hidden_wherever_they_turn_up():
    tree = {
        "api_key": "sk-123456",
        "list": [{"token": "t"}],
        "max_output_tokens": 5,
        "copy": "Bearer sk-123456",
        "not": "not",
    }
    assert hide_secrets(tree) == {
        "api_key": "****",
        "list": [{"token": "****"}],
        "max_output_tokens": 5,
        "copy": "Bearer ****",
        "not": "not",
    }
