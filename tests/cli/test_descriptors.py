"""A server whose shell allows it few open files."""

import asyncio
import resource

from cli.conftest import BIN, CONFIGS


async def test_the_limit_is_raised_and_what_is_missing_is_told(provider, tmp_path):
    (tmp_path / "env.yaml").write_text(
        f"policy_api_key: sk-0123456789\npolicy_model_name: plain\npolicy_base_url: {provider.url}/v1\n"
    )
    run = f"ulimit -Sn 256; ulimit -Hn 900; exec {BIN / 'ng_run'} '+config_paths=[{CONFIGS}]' head_server.port=0"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", run, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        while not (await asyncio.wait_for(process.stdout.readline(), 30)).startswith(b"ready"):
            assert not process.stdout.at_eof()
        allowed = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    finally:
        process.terminate()
        _, err = await process.communicate()
    assert allowed == (900, 900)
    assert "take about 2100 open files in each process, and 900 are allowed" in err.decode()
