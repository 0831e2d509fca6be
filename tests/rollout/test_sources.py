"""Rows in every form: what is written is read back, what is damaged is told with its place."""

import gzip
import subprocess
import sys

import orjson
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymlet.rollout.columns import Columns
from gymlet.rollout.export import export
from gymlet.rollout.sources import open_source, rows_of
from gymlet.wire.errors import RequestError

ROWS = [
    {
        "responses_create_params": {"input": [{"role": "user", "content": "é\u2028?"}]},
        "response": {"output": [], "usage": None},
        "reward": 1.0,
        "verified": True,
        "steps": 3,
        "extracted_answer": "A",
        "options": [{"A": "x"}, {"B": "y"}],
        "agent_ref": {"name": "a"},
        "_ng_task_index": 0,
        "_ng_rollout_index": 0,
        "mixed": 1,
    },
    {
        "responses_create_params": {"input": "?"},
        "response": {"output": [{"type": "message"}], "usage": {"input_tokens": 5}},
        "reward": 0,
        "verified": False,
        "steps": 4,
        "extracted_answer": None,
        "options": [],
        "agent_ref": {"name": "a"},
        "_ng_task_index": 0,
        "_ng_rollout_index": 1,
        "mixed": "one",
        "_ng_attempt_index": 2,
        "maybe": None,
    },
    {"responses_create_params": {}, "reward": 0.5, "big": 2**60, "maybe": "x"},
]
FORMS = ("out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.parquet", "folder")


@pytest.fixture
def jsonl(tmp_path):
    """Write rows or bytes to a file: ``jsonl(rows)`` -> its path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_bytes(rows if isinstance(rows, bytes) else b"".join(orjson.dumps(row) + b"\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read_back(jsonl, tmp_path, form):
    target = tmp_path / "deep" / form
    assert export(open_source(jsonl(ROWS)), target) == 3
    assert list(rows_of(open_source(target))) == ROWS
    assert [path.name for path in target.parent.iterdir()] == [form]


@pytest.mark.parametrize("form", ["out.parquet", "folder"])
def test_a_table_of_many_batches(jsonl, tmp_path, form):
    rows = [{"x": number, **({"late": [number]} if number > 600 else {})} for number in range(1000)]
    export(open_source(jsonl(rows)), tmp_path / form)
    assert list(rows_of(open_source(tmp_path / form))) == rows


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b", "response", "é"]), VALUES, min_size=1), min_size=1, max_size=5)
)
def test_any_rows_survive_a_table(jsonl, tmp_path, rows):
    export(open_source(jsonl(rows)), tmp_path / "any.parquet")
    assert list(rows_of(open_source(tmp_path / "any.parquet"))) == rows


def test_plain_columns_are_plain_to_others(jsonl, tmp_path):
    export(open_source(jsonl(ROWS[:2])), tmp_path / "out.parquet")
    schema = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types == {
        "responses_create_params": "string",
        "response": "string",
        "reward": "double",
        "verified": "bool",
        "steps": "int64",
        "extracted_answer": "string",
        "options": "string",
        "agent_ref": "string",
        "_ng_task_index": "int64",
        "_ng_rollout_index": "int64",
        "mixed": "string",
        "_ng_attempt_index": "int64",
        "maybe": "string",
    }


def test_a_table_of_others_is_rows(tmp_path):
    table = pyarrow.table(
        {"responses_create_params": ['{"input": "a"}', None], "options": [[{"A": "x"}], []], "n": [1, None]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert list(rows_of(open_source(tmp_path / "t.parquet"))) == [
        {"responses_create_params": {"input": "a"}, "options": [{"A": "x"}], "n": 1},
        {"responses_create_params": None, "options": [], "n": None},
    ]


def test_compressed_lines_are_the_lines(jsonl, tmp_path):
    text = b'{"a":1}\n\n{"b":2}\n{"c":"' + b"x" * 3_000_000 + b'"}'
    packed = {"r.jsonl.gz": gzip.compress(text), "r.jsonl.zst": zstandard.compress(text)}
    halves = text[:9], text[9:]
    packed["two.gz"] = b"".join(map(gzip.compress, halves))
    packed["two.zst"] = b"".join(map(zstandard.compress, halves))
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
        assert [line.rstrip(b"\n") for line in open_source(tmp_path / name).lines()] == text.split(b"\n")


LONG = b"".join(b'{"x":%d}\n' % (number * 7919 % 10007) for number in range(200_000))


def broken(name, path):
    match name:
        case "a gzip that is cut off":
            path.write_bytes(gzip.compress(LONG)[:-1000])
        case "a gzip with a wrong byte":
            content = bytearray(gzip.compress(LONG))
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(content)
        case "a zstd that is cut off":
            path.write_bytes(zstandard.compress(LONG)[:-1000])
        case "a zstd with a wrong byte":
            content = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(LONG))
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(content)
        case "no gzip" | "no zstd" | "no Parquet":
            path.write_bytes(b'{"x":1}\n')


BROKEN = {
    "a gzip that is cut off": ("r.jsonl.gz", r"r\.jsonl\.gz is damaged or cut off after line \d{3,}: "),
    "a gzip with a wrong byte": ("r.jsonl.gz", r"r\.jsonl\.gz is damaged or cut off after line \d+: "),
    "a zstd that is cut off": (
        "r.jsonl.zst",
        r"r\.jsonl\.zst is damaged or cut off after line \d+: .*middle of a frame",
    ),
    "a zstd with a wrong byte": ("r.jsonl.zst", r"r\.jsonl\.zst is damaged or cut off after line \d+: "),
    "no gzip": ("r.gz", r"r\.gz is damaged or cut off after line 0: Not a gzipped file"),
    "no zstd": ("r.zst", r"r\.zst is damaged or cut off after line 0: "),
    "no Parquet": ("r.parquet", r"r\.parquet is damaged or cut off after row 0: "),
}


@pytest.mark.parametrize(("name", "file", "words"), [(name, *case) for name, case in BROKEN.items()], ids=BROKEN)
def test_what_is_damaged_is_told_with_its_place(tmp_path, name, file, words):
    broken(name, tmp_path / file)
    with pytest.raises(RequestError, match=words):
        list(open_source(tmp_path / file).lines())


def test_times_with_nanoseconds_are_times(tmp_path):
    """As pandas writes them."""
    times = pyarrow.array([1_600_000_000_000_000_001], pyarrow.timestamp("ns"))
    pyarrow.parquet.write_table(pyarrow.table({"at": times}), tmp_path / "t.parquet")
    assert list(rows_of(open_source(tmp_path / "t.parquet"))) == [{"at": "2020-09-13T12:26:40.000000001"}]


def test_a_parquet_that_is_cut_off(jsonl, tmp_path):
    export(open_source(jsonl(ROWS)), tmp_path / "r.parquet")
    content = (tmp_path / "r.parquet").read_bytes()
    (tmp_path / "r.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(RequestError, match=r"r\.parquet is damaged or cut off after row 0"):
        list(open_source(tmp_path / "r.parquet").lines())


MISTAKES = {
    "no file": (lambda path: open_source(path / "none.jsonl"), "there is no file .*none.jsonl"),
    "a folder of other things": (open_source, "is a folder that datasets did not save: it has none of state.json"),
    "no JSON": (lambda path: list(rows_of(open_source(path / "bad.jsonl"))), r"Malformed JSON in .*bad\.jsonl at line 3"),
    "an unknown form": (lambda path: export(open_source(path / "bad.jsonl"), path / "out.csv"), "cannot write '.csv'; there are .gz, .jsonl, .parquet, .zst"),
    "no rows": (lambda path: export(open_source(path / "empty.jsonl"), path / "out.parquet"), "empty.jsonl has no rows"),
    "no row": (lambda path: export(open_source(path / "list.jsonl"), path / "out.parquet"), r"list\.jsonl at line 1: a row must be"),
    "a folder that is there": (lambda path: export(open_source(path / "good.jsonl"), path / "there"), "is there already"),
    "a data set that is not there": (lambda path: list(open_source(f"hf:{path}/nothing").lines()), "hf:.*nothing: "),
}  # fmt: skip


@pytest.mark.parametrize(("does", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(tmp_path, jsonl, does, words):
    jsonl(b'{"a":1}\n\n{not json\n', "bad.jsonl")
    jsonl(b"\n", "empty.jsonl")
    jsonl(b"[1]\n", "list.jsonl")
    jsonl(b'{"a":1}\n', "good.jsonl")
    (tmp_path / "there").mkdir()
    with pytest.raises(RequestError, match=words):
        does(tmp_path)
    assert not list(tmp_path.glob("out.*"))


def test_a_data_set_of_the_hub_by_its_splits(tmp_path, jsonl):
    """A local folder stands for a repository of the hub; datasets reads both alike."""
    (tmp_path / "repo").mkdir()
    jsonl([{"x": 1}, {"x": 2}], "repo/train.jsonl")
    jsonl([{"x": 3}], "repo/test.jsonl")
    assert list(rows_of(open_source(f"hf:{tmp_path}/repo"))) == [{"x": 1}, {"x": 2}]
    assert list(rows_of(open_source(f"hf:{tmp_path}/repo:test"))) == [{"x": 3}]
    with pytest.raises(RequestError, match=r"hf:.*repo"):
        list(open_source(f"hf:{tmp_path}/repo:dev").lines())
    fingerprints = [open_source(f"hf:{tmp_path}/repo{split}").fingerprint() for split in ("", ":train", ":test")]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_splits_that_were_saved_are_named(tmp_path):
    import datasets  # noqa: PLC0415  it takes a second

    table = datasets.Dataset.from_dict({"x": [1, 2]})
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "all")
    with pytest.raises(RequestError, match=r"holds the splits test, train; name one of them, such as .*all/test"):
        open_source(tmp_path / "all")
    assert list(rows_of(open_source(tmp_path / "all" / "train"))) == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize("form", FORMS)
def test_a_fingerprint_changes_with_the_rows(jsonl, tmp_path, form):
    export(open_source(jsonl(ROWS)), tmp_path / "one" / form)
    export(open_source(jsonl(ROWS[:2])), tmp_path / "two" / form)
    one, two = open_source(tmp_path / "one" / form), open_source(tmp_path / "two" / form)
    assert one.fingerprint() == one.fingerprint() != two.fingerprint()


@pytest.mark.parametrize(
    ("form", "extra"), [("out.jsonl.zst", "zstd"), ("out.parquet", "parquet"), ("folder", "datasets")]
)
def test_a_missing_extra_is_named(jsonl, tmp_path, form, extra):
    blocker = "import sys; sys.modules.update(dict.fromkeys(('zstandard', 'pyarrow', 'datasets', 'pyarrow.parquet')))\n"
    run = (
        "from pathlib import Path\n"
        "from gymlet.rollout.export import export\n"
        "from gymlet.rollout.sources import open_source\n"
        f"export(open_source(Path({str(jsonl(ROWS))!r})), Path({str(tmp_path / form)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", blocker + run], capture_output=True, text=True, check=False)
    assert f"pip install 'gymlet[{extra}]'" in done.stderr.splitlines()[-1]


def test_nothing_heavy_is_loaded_for_plain_files(jsonl):
    run = f"from gymlet.rollout.sources import *\nlist(rows_of(open_source(Path({str(jsonl(ROWS))!r}))))\nimport sys\n"
    check = "assert not {'pyarrow', 'datasets', 'zstandard', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", run + check], check=True)


def test_columns_say_what_they_are():
    columns = Columns.of_rows([{"a": 1, "b": None}, {"a": 0.5}])
    assert Columns.from_json(columns.to_json()) == columns
    assert (columns.kinds, columns.optional) == ({"a": "float", "b": "json"}, {"b"})
