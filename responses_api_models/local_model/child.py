"""The engine's process: llama.cpp's own OpenAI-compatible server, for as long as stdin stays open.

It reads its parameters as one line of JSON, tells as one line of JSON that it is ready, and ends when its stdin closes,
so that nothing is left behind whatever becomes of the parent. It leaves by ``os._exit``: ending the engine object
would wait for requests that nobody reads any more.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# Spinning threads starve each other on a busy machine; this is read when the library is loaded.
os.environ["OMP_WAIT_POLICY"] = "passive"

EXIT_NO_LIBRARY = 41


def main() -> None:
    """Serve until stdin closes."""
    parameters = json.loads(sys.stdin.readline())
    try:
        import xllamacpp  # noqa: PLC0415  after the environment is set
    except ImportError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(EXIT_NO_LIBRARY)
    server = xllamacpp.Server(_settings(xllamacpp.CommonParams(), parameters))
    print(json.dumps({"ready": server.listening_address}), flush=True)
    sys.stdin.read()
    os._exit(0)


def _settings(params: Any, given: dict[str, Any]) -> Any:
    params.model.path = given["gguf"]
    params.hostnames = ["127.0.0.1"]
    params.port = given["port"]
    params.n_parallel = given["slots"]
    params.n_ctx = given["context_tokens"] * given["slots"]  # llama.cpp divides it by the slots
    params.n_predict = given["max_output_tokens_default"]
    params.cpuparams.n_threads = given["threads"]
    params.cpuparams_batch.n_threads = given["threads"]
    params.n_gpu_layers = 0
    if given["chat_template"]:
        params.use_jinja = True
        params.chat_template = given["chat_template"]
    return params


if __name__ == "__main__":
    main()
