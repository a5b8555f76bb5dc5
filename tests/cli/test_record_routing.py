"""`xverse generate --record-routing`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli, memory_stream, written
from xverse_cli.app import run
from xverse_cli.host import Host
from xverse_cli.streams import Streams
from xverse_runtime.offload.trace_file import TraceReader


def test_it_records_the_tokens_of_a_reply(tmp_path: Path) -> None:
    streams = Streams(memory_stream(), memory_stream(), memory_stream())
    argv = ["generate", "-m", "demo", "--device", "cpu", "--temperature", "0", "--max-tokens", "5"]
    code = run([*argv, "--record-routing", str(tmp_path / "trace"), "hi"], Host(streams, {}))
    assert (code, written(streams.stderr)) == (0, b"")
    sizes = [len(one.tokens) for one in TraceReader(tmp_path / "trace")]
    assert sizes[1:] == [1] * 4


def test_only_models_that_run_here_can_be_recorded(cli: Cli, tmp_path: Path) -> None:
    result = cli("generate", "hi", "--record-routing", str(tmp_path / "trace"))
    assert result.code == 2
    assert "run on this machine" in result.stderr
    assert not (tmp_path / "trace").exists()
