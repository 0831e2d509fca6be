"""Collects on a real Ray cluster, loses a node, gains another, and counts what became of every rollout.

    make ray        or: python scripts/ray_cluster.py [--rollouts 4000]

The cluster is made on this machine, in a network namespace of its own with an address for each node (this needs root,
and ``ip`` of iproute2), and asks for a token. First a provider of 200 ms tells how fast two nodes are, each with half
of the rollouts at once that the command alone has. Then, in the middle of a run, the raylet of one node is killed, by
its pid; a little later another node joins. Last comes a run with a row that kills whatever process runs it.

It ends with 1 unless the nodes have 0.9 of the command's rate, every key is there exactly once, no more was repeated
than the lost node can have had, the provider never saw more calls than the limit, and the row that kills was filed
while the others were run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gymlet.rollout.files import RunFiles, read_rows
from gymlet.rollout.keys import key_of

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MCQA = "resources_servers/mcqa/configs/mcqa.yaml"
PROVIDER = "responses_api_models/inference_provider/configs/inference_provider.yaml"
ADDRESSES = ("10.99.0.1", "10.99.0.2", "10.99.0.3")
PORT = 6379
PROVIDER_PORT = 9000
PARALLEL = 16
"""Rollouts at once, of each node."""

LIMIT = 24
"""Calls at once, of all nodes: fewer than two nodes would make."""

MODEL = "policy_model.responses_api_models.inference_provider"
LIMITED = f"++{MODEL}.num_concurrent_requests={LIMIT}"
RAY = ("+executor=ray", f"+ray_address={ADDRESSES[0]}:{PORT}")

AT_ONCE, TURNS = 64, 60
"""Rollouts at once, and how often, where rates are compared."""

ON_A_NODE = (PARALLEL // 8 + 2) * 8
"""Rollouts that a node can have: its leases, and the two ahead."""

POISON = """
import os

from gymlet.serve.environment import Environment


class Poisoned(Environment):
    async def verify(self, session, row):
        if row.get("poison"):
            os._exit(1)
        return {"reward": 1.0}
"""
POISON_CONFIG = """
poisoned: {resources_servers: {poisoned: {entrypoint: app.py, domain: other}}}
poisoned_agent:
  responses_api_agents:
    simple_agent:
      entrypoint: app.py
      resources_server: {type: resources_servers, name: poisoned}
      model_server: {type: responses_api_models, name: policy_model}
"""


@dataclass
class Cluster:
    """Processes in one network namespace. Owns all of them."""

    namespace: str
    folder: Path
    env: dict[str, str]
    wrong: list[str] = field(default_factory=list)

    def check(self, what: str, *, holds: bool) -> None:
        """Keep what is wrong."""
        if not holds:
            self.wrong.append(what)

    async def run(self, *command: str) -> str:
        """Run a command in the namespace to its end."""
        process = await self.start(*command)
        out, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{out.decode()}")
        return out.decode()

    async def start(self, *command: str) -> asyncio.subprocess.Process:
        """Start a command in the namespace."""
        return await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", self.namespace, *command),
            cwd=self.folder,
            env={**os.environ, **self.env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def start_node(self, address: str) -> None:
        """Start a node of the cluster; the first is its head."""
        head = ("--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.folder / 'ray'}")
        where = head if address == ADDRESSES[0] else (f"--address={ADDRESSES[0]}:{PORT}",)
        words = (f"--node-ip-address={address}", "--num-cpus=1", "--disable-usage-stats", "--log-style=record")
        log = self.folder / f"{address}.log"
        # a daemon keeps the pipe open: its words go to a file
        command = " ".join([str(BIN / "ray"), "start", *where, *words])
        process = await self.start("bash", "-c", f"{command} > {log} 2>&1")
        if await process.wait():
            raise SystemExit(f"the node {address} did not start:\n{log.read_text()}")

    def raylet_of(self, address: str) -> int:
        """The pid of a node's raylet."""
        for pid in _pids_in(self.namespace):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"/raylet") and f"--node_ip_address={address}".encode() in words:
                return pid
        raise SystemExit(f"there is no raylet of {address}")

    async def counts(self) -> Json:
        """What the provider was asked since this was asked last."""
        script = (
            "import urllib.request as u; "
            f"print(u.urlopen('http://127.0.0.1:{PROVIDER_PORT}/new_counts').read().decode())"
        )
        counts: Json = orjson.loads(await self.run(sys.executable, "-c", script))
        return counts


async def main() -> int:
    """Run both; 1 if anything is not as it must be."""
    given = _arguments()
    missing = _missing()
    if missing:
        print(f"this needs {missing}")
        return 2
    print(f"command: python scripts/ray_cluster.py {' '.join(sys.argv[1:])}")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, _namespace() as namespace:
        env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
        cluster = Cluster(namespace, Path(name), env)
        for address in ADDRESSES[:2]:
            await cluster.start_node(address)
        async with _provider(cluster, "--delay-s", "0.2"):
            await _compare_rates(cluster)
        async with _provider(cluster, "--delay-s", "0.1", "--jitter-s", "0.1"):
            await _lose_and_gain(cluster, given.rollouts)
            await _poison(cluster)
            _check_no_key_in_logs(cluster)
    for line in cluster.wrong:
        print(f"WRONG: {line}")
    print(f"{time.perf_counter() - started:.0f} s")
    return 1 if cluster.wrong else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=4000)
    return parser.parse_args()


def _missing() -> str:
    if importlib.util.find_spec("ray") is None:
        return "ray: pip install 'gymlet[ray]'"
    if shutil.which("ip") is None:
        return "ip, of iproute2"
    return "" if os.geteuid() == 0 else "root, to make a network namespace"


@contextmanager
def _namespace() -> Iterator[str]:
    """A network namespace with an address for each node; whatever runs in it at the end is killed."""
    name = f"gymlet-{os.getpid()}"
    _ip(f"netns add {name}")
    try:
        _ip(f"-n {name} link set lo up")
        _ip(f"-n {name} link add node0 type veth peer name node1")
        for link in ("node0", "node1"):
            _ip(f"-n {name} link set {link} up")
        for address in ADDRESSES:
            _ip(f"-n {name} addr add {address}/24 dev node0")
        yield name
    finally:
        for pid in _pids_in(name):
            os.kill(pid, signal.SIGKILL)
        _ip(f"netns del {name}")


def _ip(words: str) -> None:
    if os.spawnvp(os.P_WAIT, "ip", ["ip", *words.split()]):  # noqa: S606  no shell, and iproute2's own
        raise SystemExit(f"ip {words} failed")


def _pids_in(namespace: str) -> list[int]:
    """The processes of a namespace: those that share its network."""
    inode = Path(f"/run/netns/{namespace}").stat().st_ino
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/net").stat().st_ino == inode:
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


@asynccontextmanager
async def _provider(cluster: Cluster, *words: str) -> AsyncIterator[None]:
    script = str(ROOT / "scripts" / "lean_provider.py")
    process = await cluster.start(sys.executable, script, "--port", str(PROVIDER_PORT), *words)
    (cluster.folder / "env.yaml").write_text(
        f"policy_api_key: sk-{secrets.token_hex(16)}\npolicy_model_name: lean\n"
        f"policy_base_url: http://127.0.0.1:{PROVIDER_PORT}/v1\n"
    )
    try:
        await asyncio.sleep(1)
        await cluster.counts()
        yield
    finally:
        process.kill()
        await process.wait()


async def _collector(cluster: Cluster, output: str, agent: str, *words: str) -> asyncio.subprocess.Process:
    return await cluster.start(
        str(BIN / "ng_collect_rollouts"), f"+agent_name={agent}", f"+output_jsonl_fpath={output}", *words
    )


async def _compare_rates(cluster: Cluster) -> None:
    """The same rollouts by this process, and by two nodes with half of them at once each."""
    _write_rows(cluster.folder / "fast.jsonl", AT_ONCE * TURNS)
    words = (
        f"+config_paths=[{MCQA},{PROVIDER}]",
        "+input_jsonl_fpath=fast.jsonl",
        f"++{MODEL}.adaptive_concurrency=false",
    )
    per_s: list[float] = []
    for name, ray, parallel in (("here", (), AT_ONCE), ("nodes", RAY, AT_ONCE // 2)):
        parallel_word = f"+num_samples_in_parallel={parallel}"
        process = await _collector(cluster, f"{name}.jsonl", "mcqa_simple_agent", *ray, *words, parallel_word)
        out = (await process.communicate())[0].decode()
        cluster.check(f"the run ended with {process.returncode}:\n{out}", holds=process.returncode == 0)
        counts = await cluster.counts()
        per_s.append(counts["requests"] / counts["busy_s"])
    here, nodes = per_s
    print(f"a provider of 200 ms: {here:.0f} rollouts/s with {AT_ONCE} at once in the command's process")
    print(f"  {nodes:.0f} on two nodes with {AT_ONCE // 2} each: {nodes / here:.2f} of that")
    cluster.check("two nodes have less than 0.9 of the command's rate", holds=nodes >= 0.9 * here)


async def _lose_and_gain(cluster: Cluster, rollouts: int) -> None:
    """Kill a raylet after a quarter, start a node after a half."""
    _write_rows(cluster.folder / "rows.jsonl", rollouts)
    words = (*RAY, LIMITED, f"+config_paths=[{MCQA},{PROVIDER}]", "+input_jsonl_fpath=rows.jsonl")
    process = await _collector(
        cluster, "run.jsonl", "mcqa_simple_agent", *words, f"+num_samples_in_parallel={PARALLEL}"
    )
    told = asyncio.create_task(process.communicate())
    files = RunFiles(cluster.folder / "run.jsonl")
    at_loss = await _grown(files.output, rollouts // 4, process)
    os.kill(cluster.raylet_of(ADDRESSES[1]), signal.SIGKILL)
    at_gain = await _grown(files.output, rollouts // 2, process)
    await cluster.start_node(ADDRESSES[2])
    out = (await told)[0].decode()
    counts = await cluster.counts()
    keys = Counter(key_of(row) for row in read_rows(files.output))
    repeated = int(counts["requests"]) - rollouts
    print(f"two nodes, {PARALLEL} rollouts at once on each; one killed at {at_loss} rows, another from {at_gain} on")
    print(f"{rollouts} rollouts expected, {len(keys)} keys in the output, {max(keys.values())} row for each at most")
    print(
        f"{int(counts['requests'])} requests: {repeated} were repeated, of {ON_A_NODE} that the lost node had at most"
    )
    print(f"{int(counts['most_in_flight'])} requests at once at most, of {LIMIT}; {counts['busy_s']:.1f} s")
    print("".join(f"  {line}\n" for line in out.splitlines() if "the node" in line), end="")
    wanted = dict.fromkeys(itertools.product(range(rollouts), [0]), 1)
    cluster.check(f"the run ended with {process.returncode}:\n{out}", holds=process.returncode == 0)
    cluster.check("a key is not there, or is there twice", holds=keys == wanted)
    cluster.check("more was repeated than the node can have had", holds=repeated <= ON_A_NODE)
    cluster.check("the provider saw more calls at once than the limit", holds=counts["most_in_flight"] <= LIMIT)
    cluster.check("the lost node was not told", holds=f"the node {ADDRESSES[1]} was lost" in out)
    cluster.check("the new node did not take part", holds=f"the node {ADDRESSES[2]} takes part" in out)


async def _poison(cluster: Cluster) -> None:
    """A row that kills its process: it is filed, and all others are run."""
    plugin = cluster.folder / "resources_servers" / "poisoned"
    plugin.mkdir(parents=True)
    (plugin / "app.py").write_text(POISON)
    (cluster.folder / "poisoned.yaml").write_text(POISON_CONFIG)
    rows = [{"responses_create_params": {"input": f"Question {at}"}, "poison": at == 100} for at in range(200)]
    (cluster.folder / "poison.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    words = (*RAY, LIMITED, f"+config_paths=[poisoned.yaml,{PROVIDER}]", "+input_jsonl_fpath=poison.jsonl")
    files = RunFiles(cluster.folder / "poisoned.jsonl")
    codes, filed = [], 0
    for _ in range(2):
        process = await _collector(cluster, "poisoned.jsonl", "poisoned_agent", *words, "+num_samples_in_parallel=4")
        out = (await process.communicate())[0].decode()
        codes.append(process.returncode)
        filed = filed or sum(1 for _ in read_rows(files.failures))
    keys = Counter(key_of(row) for row in read_rows(files.output))
    failures = [row for row in read_rows(files.failures) if row["poison"]]
    print(f"a row that kills its process: {len(keys)} of {len(rows) - 1} others have a row; {filed} filed in a run")
    wanted = {(at, 0): 1 for at in range(len(rows)) if at != 100}
    cluster.check(f"the runs ended with {codes}:\n{out}", holds=codes == [3, 3])
    cluster.check("a row that kills nobody is not there, or is there twice", holds=keys == wanted)
    told = "the process that ran it died, as did two others"
    cluster.check("the row that kills was not filed", holds=all(told in row["error"]["message"] for row in failures))
    cluster.check("the row that kills was not filed once a run", holds=(len(failures), filed) == (2, 1))


def _check_no_key_in_logs(cluster: Cluster) -> None:
    """Neither the provider's key nor the cluster's token is in any file of Ray's."""
    key = (cluster.folder / "env.yaml").read_text().split()[1].encode()
    token = cluster.env["RAY_AUTH_TOKEN"].encode()
    files = [path for path in (cluster.folder / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
    leaks = [str(path) for path in files if any(secret in path.read_bytes() for secret in (key, token))]
    print(f"{len(files)} files of Ray's hold neither the key nor the token" if not leaks else f"leaks: {leaks}")
    cluster.check("a secret is in a file of Ray's", holds=not leaks and bool(files))


async def _grown(path: Path, rows: int, process: asyncio.subprocess.Process) -> int:
    """Wait until a file has so many rows; how many it has then."""
    while True:
        count = await asyncio.to_thread(_lines_of, path)
        if count >= rows or process.returncode is not None:
            return count
        await asyncio.sleep(0.1)


def _lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _write_rows(path: Path, count: int) -> None:
    options = [{letter: f"option {letter}"} for letter in "ABCD"]
    with path.open("wb") as file:
        for number in range(count):
            params = {"input": f"Question {number}: which one? " + "Think well. " * 20}
            row = {"responses_create_params": params, "options": options, "expected_answer": "ABCD"[number % 4]}
            file.write(orjson.dumps(row) + b"\n")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
