"""The only writer: whole lines, and nothing after a write that failed."""

import asyncio
import errno
import os
import queue
import subprocess
import sys
import textwrap

import orjson
import pytest

from gymlet.rollout.files import RunFiles, scan
from gymlet.rollout.keys import Attempts
from gymlet.rollout.records import Appender, Records
from gymlet.rollout.sync import SYNC_ROWS, Syncer
from gymlet.rollout.todo import Todo
from gymlet.rollout.whole_file import StorageError
from gymlet.wire.errors import RequestError


def row(task, **fields):
    return orjson.dumps({"_ng_task_index": task, "_ng_rollout_index": 0, **fields}) + b"\n"


@pytest.fixture
def records(tmp_path):
    with Records(RunFiles(tmp_path / "run.jsonl"), 3) as records:
        records.open()
        yield records


def test_a_key_is_committed_once(records, tmp_path):
    assert [records.append((0, 0), row(0)), records.append((0, 0), row(0, again=1))] == [True, False]
    records.flush()
    assert (tmp_path / "run.jsonl").read_bytes() == row(0)


def test_failures_are_counted_until_there_is_a_row(records):
    records.append_failure((0, 0), row(0), terminal=False)
    records.append_failure((1, 0), row(1), terminal=True)
    for _ in range(3):
        records.append_failure((2, 0), row(2), terminal=False)
    assert [records.is_over((task, 0)) for task in range(4)] == [False, True, True, False]
    assert (records.failed, records.given_up) == (3, 2)
    records.append((0, 0), row(0))
    records.append((2, 0), row(2))
    assert (records.failed, records.given_up) == (1, 1)


@pytest.mark.parametrize("index", ["true", "1.5", '"1"', "null", str(2**63)])
def test_a_key_is_two_whole_numbers(tmp_path, index):
    path = tmp_path / "run.jsonl"
    path.write_text(
        '{"_ng_task_index":0,"_ng_rollout_index":0}\n{"_ng_rollout_index":0,"_ng_task_index":' + index + "}\n"
    )
    with pytest.raises(RequestError, match=r"run\.jsonl at line 2 is no row of a run"):
        list(scan(path))


def test_a_last_sync_that_fails_is_told(tmp_path, monkeypatch):
    """The system tells it once; the sync at the close of the file knows nothing of it."""

    def fail(_descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("os.fdatasync", fail)
    monkeypatch.setattr("gymlet.rollout.sync.SYNC_S", 3600)
    told = pytest.raises(StorageError, match="cannot be written: Input/output error")
    with told, Records(RunFiles(tmp_path / "run.jsonl"), 3) as kept:
        kept.open()
        kept.append((0, 0), row(0))
    assert not list(tmp_path.glob(".*.lock"))


@pytest.fixture
def synced(monkeypatch):
    """The files that were synced, as they are."""
    files = queue.Queue()
    monkeypatch.setattr("os.fdatasync", files.put)
    return files


def test_attempts_count_each_key():
    attempts = Attempts()
    assert [attempts.add((0, 0)), attempts.add((0, 0)), attempts.add((5, 7)), attempts.add((0, 0))] == [1, 2, 1, 3]
    assert [attempts[key] for key in ((0, 0), (5, 7), (1, 1))] == [3, 1, 0]


def test_what_a_full_disk_refuses_is_not_half_written(tmp_path):
    """A limit on the size of files stands for the disk: it takes the beginning of a line, and refuses the rest."""
    script = f"""
        import resource
        from pathlib import Path
        from gymlet.rollout.whole_file import StorageError
        from gymlet.rollout.records import Appender

        path = Path({str(tmp_path / "run.jsonl")!r})
        appender = Appender(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        line = b"x" * 299 + b"\\n"
        for number in range(4):
            appender.waiting += [line] * 2
            try:
                appender.flush()
            except StorageError as error:
                print(number, path.stat().st_size, error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    told = f"{tmp_path / 'run.jsonl'} cannot be written: File too large; what was committed is kept"
    assert done.stdout.splitlines() == [f"1 900 {told}", f"2 900 {told}", f"3 900 {told}"]


def test_nothing_is_written_once_a_sync_failed(records, tmp_path):
    """A pipe cannot be synced: it stands for a disk that is gone."""
    reader, writer = os.pipe()
    records._syncer = Syncer([records._rows.descriptor, writer])
    records._syncer.wrote(writer, 1)
    records.append((0, 0), row(0))
    records.flush()
    records._syncer.close()
    for task in (1, 2):
        records.append((task, 0), row(task))
        with pytest.raises(StorageError, match="cannot be written: Invalid argument"):
            records.flush()
    assert (tmp_path / "run.jsonl").read_bytes() == row(0)
    os.close(reader)
    os.close(writer)


def test_a_sync_waits_for_32_rows(monkeypatch, synced):
    monkeypatch.setattr("gymlet.rollout.sync.SYNC_S", 3600)
    syncer = Syncer([7, 8])
    for _ in range(SYNC_ROWS - 1):
        syncer.wrote(7, 1)
    with pytest.raises(queue.Empty):
        synced.get(timeout=0.1)
    syncer.wrote(7, 1)
    assert synced.get(timeout=30) == 7
    syncer.wrote(8, 1)
    syncer.close()
    assert (synced.get_nowait(), synced.empty()) == (8, True)


def test_a_sync_waits_no_longer_than_a_while(monkeypatch, synced):
    monkeypatch.setattr("gymlet.rollout.sync.SYNC_S", 0.01)
    syncer = Syncer([7])
    syncer.wrote(7, 1)
    assert synced.get(timeout=30) == 7
    syncer.close()
    assert synced.empty()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    files = RunFiles(tmp_path / "file" / "run.jsonl")
    with (
        pytest.raises(RequestError, match=r"cannot be written: .*; name another output_jsonl_fpath"),
        Records(files, 3),
    ):
        pass


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(StorageError, match="cannot be written: Is a directory"):
        Appender(tmp_path)


LINES = {
    "ours": row(3, x={"_ng_task_index": 9}),
    "others', with spaces and other orders": b'{"x": 1, "_ng_rollout_index": 0, "_ng_task_index": 3}\n',
    "without its newline": row(3).rstrip(),
    "an index that is too long for ours": b'{"_ng_task_index":%d,"_ng_rollout_index":0}\n' % 10**18,
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_keys_are_found_in_lines(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + row(1) + b"  \n" + line)
    first, second = scan(path)
    task = orjson.loads(line)["_ng_task_index"]
    assert (first.key, second.key) == ((1, 0), (task, 0))
    assert second.text == line
    assert path.read_bytes()[second.offset :] == line


async def test_a_lost_nodes_tasks_come_first_and_late_ones_are_waited_for(tmp_path, records):
    (tmp_path / "tasks.jsonl").write_bytes(b"".join(row(task) for task in range(5)))
    with Todo(tmp_path / "tasks.jsonl", records, asyncio.Event()) as todo:
        lost, kept = await todo.take(2), await todo.take(2)
        todo.settle()
        for task in lost:
            todo.give_back(task)
        assert [task.key[0] for task in await todo.take(9)] == [0, 1, 4]
        waiting = asyncio.create_task(todo.take(1))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "what is out may come back"
        todo.again(kept[0], "agent_error")
        assert [task.key[0] for task in await waiting] == [kept[0].key[0]]
