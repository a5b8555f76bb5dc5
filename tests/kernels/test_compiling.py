"""Kernels compiled in processes, with Triton's cache on disk between them.

All of it runs in processes of their own: triton must not be imported here (see test_aot.py).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is for Linux"
)
BEGINNING = """
import dataclasses, json, os, sys, time
from triton import knobs
from triton.backends.compiler import GPUTarget
from xverse_kernels.triton.compiling import Compilation
from xverse_kernels.triton.versions import Version, compile_version

def combine(slots, module="xverse_kernels.triton.grouped_kernels", kernel="combine_kernel"):
    types = {"parts_ptr": "*bf16", "ids_ptr": "*i32", "slot_weights_ptr": "*bf16",
             "table_ptr": "*i32", "residual_ptr": "*bf16", "out_ptr": "*bf16"}
    constants = {"SLOTS": slots, "HIDDEN": 256, "BLOCK": 1024}
    return Version(module, kernel, tuple(types.items()), tuple(constants.items()), 4, 3, False)

def run(versions, wait=60, **how):
    compilation = Compilation(versions, lambda: GPUTarget("cuda", 90, 32), **how)
    over = compilation.wait(wait)
    compilation.close()
    return compilation, over
"""


def run(script: str, cache: Path, *, path: Path = ROOT) -> dict[str, Any]:
    """What a process prints as JSON that knows `BEGINNING`."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    paths = [path, ROOT, ROOT / "runtime", ROOT / "kernels"]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    result = subprocess.run(
        [sys.executable, "-c", BEGINNING + textwrap.dedent(script)],
        cwd=cache.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_second_start_compiles_nothing(tmp_path: Path) -> None:
    script = """
        hits = []
        knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
        versions = [combine(slots) for slots in (2, 3, 4)]
        done, over = run(versions, workers=2)
        for version in versions:  # what launchers call
            compile_version(version, GPUTarget("cuda", 90, 32))
        print(json.dumps([over, done.total, done.done, len(done.compiled), hits,
                          "torch" in sys.modules]))
    """
    # the workers compile; this process finds in the cache what they made, and launchers do again
    assert run(script, tmp_path / "cache") == [True, 3, 3, 3, [True] * 6, False]
    assert run(script, tmp_path / "cache") == [True, 0, 0, 3, [True] * 6, False]


def test_what_cannot_be_compiled_is_left_to_its_launch(tmp_path: Path) -> None:
    script = """
        versions = [combine(2), combine(3, kernel="missing_kernel"), combine(4)]
        done, over = run(versions, workers=1)
        print(json.dumps([over, done.total, done.done, [v in done.compiled for v in versions]]))
    """
    assert run(script, tmp_path / "cache") == [True, 3, 3, [True, False, True]]


IN_A_WORKER = """
import os, sys, time
from xverse_kernels.triton.grouped_kernels import combine_kernel
if sys.argv[0].endswith("compile_worker.py"):
    {what}
"""


def test_a_compiler_that_crashes_takes_nothing_with_it(tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(IN_A_WORKER.format(what="os.abort()"))
    script = """
        versions = [combine(2), combine(3, module="crashing"), combine(4)]
        done, over = run(versions, workers=1)
        print(json.dumps([over, done.total, done.done, [v in done.compiled for v in versions]]))
    """
    found = run(script, tmp_path / "cache", path=tmp_path)
    assert found == [True, 3, 3, [True, False, True]]


def test_it_can_be_ended_at_any_time(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(
        IN_A_WORKER.format(what="open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    )
    script = """
        compilation = Compilation([combine(2, module="hanging")],
                                  lambda: GPUTarget("cuda", 90, 32), workers=1)
        while not os.path.exists("pid"):
            assert not compilation.wait(0.05)
        begun = time.perf_counter()
        compilation.close()
        print(json.dumps([time.perf_counter() - begun, compilation.done < 2]))
    """
    seconds, _ = run(script, tmp_path / "cache", path=tmp_path)
    assert seconds < 1
    worker = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{worker}").exists()


def test_a_program_that_is_killed_leaves_no_worker(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        IN_A_WORKER.format(what="open('pid', 'w').write(str(os.getpid())); time.sleep(1)")
    )
    script = """
        import signal
        compilation = Compilation([combine(2, module="slow"), combine(3, module="slow")],
                                  lambda: GPUTarget("cuda", 90, 32), workers=1)
        while not os.path.exists("pid"):
            time.sleep(0.05)
        if os.fork() == 0:  # somebody has to answer
            print(json.dumps({}))
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        os._exit(0)
    """
    run(script, tmp_path / "cache", path=tmp_path)
    worker = Path(f"/proc/{(tmp_path / 'pid').read_text()}")
    deadline = time.monotonic() + 60
    while worker.exists() and worker.joinpath("stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("target", ["cuda 90", pytest.param("cuda 86", marks=pytest.mark.slow)])
def test_versions_are_what_tritons_own_launch_would_compile(target: str, tmp_path: Path) -> None:
    """Every version that the full model has."""
    script = """
        import torch, triton
        from tools.aot.launches import _weights
        from triton.runtime import driver
        from triton.runtime.jit import MockTensor
        from xverse_kernels.packing import INT4
        from xverse_kernels.triton.launch import Abilities
        from xverse_runtime.config import ModelConfig
        from xverse_runtime.kernel_versions import Usage, kernel_versions
        from xverse_runtime.store.synthetic import A4_2B
        import importlib

        target = GPUTarget("cuda", CAPABILITY, 32)
        class Driver:
            def get_current_target(self): return target
            def get_current_device(self): return 0
            def get_current_stream(self, device): return 0
        driver.set_active(Driver())
        asked = []
        def note(src, target=None, options=None, **_):
            options = triton.compiler.make_backend(target).parse_options(dict(options))
            attributes = {place: one for place, one in src.attrs.items() if one}
            asked.append((src.fn, src.signature, src.constants, attributes, options.hash()))
        triton.compile = triton.compiler.compile = note

        def value(name, kind):
            if kind[0] == "*":
                dtypes = dict(bf16="bfloat16", fp16="float16", fp32="float32", i8="int8",
                              i32="int32", i64="int64")
                return MockTensor(getattr(torch, dtypes[kind[1:]]))
            return 0.5 if kind == "fp32" else 16

        config = ModelConfig.from_dict({**A4_2B, "num_hidden_layers": 1})
        weights = _weights(config, torch.bfloat16, INT4)
        unit = Abilities("wgmma", CAPABILITY)
        versions = kernel_versions(config, weights, Usage(torch.bfloat16, 8192, 2048, 8), unit)
        different = []
        for version in versions:
            kernel = getattr(importlib.import_module(version.module), version.kernel)
            args = [value(*one) for one in version.signature]
            options = {"launch_pdl": True} if version.pdl else {}
            options |= {"maxnreg": version.registers} if version.registers else {}
            try:
                kernel.run(*args, grid=(1,), warmup=True, **version.constant,
                           num_warps=version.warps, num_stages=version.stages, **options)
            except AttributeError:
                pass  # None is no compiled kernel
            compile_version(version, target)
            if len(asked) != 2 or asked[0] != asked[1]:
                different.append(version.kernel)
            asked.clear()
        print(json.dumps([len(versions), different]))
    """
    count, different = run(script.replace("CAPABILITY", target.split()[1]), tmp_path / "cache")
    assert count > 20
    assert different == []


@pytest.mark.slow
def test_a_whole_model_is_ready_when_it_is_loaded(tmp_path: Path) -> None:
    """Loading, compiling and launching as on an H100, but for the device, which does nothing."""
    script = """
        from contextlib import nullcontext
        import torch
        from triton.runtime import driver
        from tests.runtime.helpers import GOLDEN
        from xverse_kernels.triton.backend import TritonBackend
        from xverse_runtime import engine_parts
        from xverse_runtime.config import EngineConfig
        from xverse_runtime.decoding import decode_loop
        from xverse_runtime.engine import Engine
        from xverse_runtime.kernel_versions import Usage
        from xverse_runtime.types import SamplingParams
        from xverse_runtime.warm_up import WarmUp

        launched, loaded, asked, told, begun = [], [], [], [], []
        class Utils:
            def get_device_properties(self, device): return {"max_shared_mem": 232448}
            def load_binary(self, name, *_):
                loaded.append(name)
                return 1, 1, 32, 0, 1024
        class Driver:
            utils = Utils()
            def get_current_target(self): return GPUTarget("cuda", 90, 32)
            def get_current_device(self): return 0
            def get_current_stream(self, device): return 0
            def launcher_cls(self, src, metadata): return lambda *_: launched.append(src.name)
        driver.set_active(Driver())
        torch.cuda.device = lambda _device: nullcontext()
        CPU = torch.device("cpu")
        engine_parts.select_kernels = lambda *_, **__: TritonBackend(CPU)
        make, load_weights = WarmUp.__init__, engine_parts.load_weights
        WarmUp.__init__ = lambda self, *args: (begun.append(self), make(self, *args))[1]
        def load(*args, **options):
            def opened(weights, cache):
                begun[0].begin(args[1], weights, Usage(cache, args[4], 2048))
            return load_weights(*args, **{**options, "on_opened": opened})
        engine_parts.load_weights = load

        config = EngineConfig(device="cpu", backend="triton", precision="bf16")
        engine = Engine.load(GOLDEN / "moe-gqa", config, progress=told.append)
        ready, launches = len(loaded), len(launched)
        knobs.compilation.listener = lambda *, src, **_: asked.append(src.name)
        engine._loop = decode_loop(engine._decoder, engine._cache.pool, use_graphs=False)
        for tokens in (3, 40, 300):
            params = SamplingParams(temperature=0, max_new_tokens=3)
            for _ in engine.generate([5] * tokens, params):
                pass
        last = told[-1]
        print(json.dumps([last.done_kernels, last.total_kernels, ready, launches, len(launched),
                          len(loaded), asked]))
    """
    first = run(script, tmp_path / "cache")
    second = run(script, tmp_path / "cache")
    done, total, ready, before, launches, loaded, asked = first
    assert done == total == ready == loaded > 15
    assert before == 0
    assert launches > 100
    assert asked == []
    assert second == [0, 0, *first[2:]]
