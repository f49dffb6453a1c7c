"""The CuPy backend without a GPU: its kernels compiled for the CPU and launched by a stand-in for CuPy."""

import contextlib
import ctypes
import importlib.util
import struct
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from timm_snn.ops.backends.cuda_source import OPTIONS, SOURCE

__all__ = ['STREAM', 'StandIn', 'compile_for_cpu', 'cupy_on_cpu']

STREAM = 0x5EED
FLAGS = ['-std=c++17', '-O1', '-ffp-contract=off', '-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas']


class StandIn(types.ModuleType):
    """Stands for the module `cupy`: records every launch, and runs it if `kernels` has the name."""

    def __init__(self):
        super().__init__('cupy')
        self.launches: list[tuple[str, int, int, tuple]] = []
        self.kernels: dict[str, Callable[..., bool]] = {}
        self.stream: int | None = None
        self.cuda = types.SimpleNamespace(
            nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 0)),
            Stream=types.SimpleNamespace(from_external=self.use_stream),
        )

    @contextlib.contextmanager
    def use_stream(self, stream):
        version, self.stream = stream.__cuda_stream__()
        assert version == 0
        yield
        self.stream = None

    def RawModule(self, *, code, options, name_expressions):
        assert code == SOURCE and options == OPTIONS and '--fmad=false' in options
        return types.SimpleNamespace(get_function=lambda name: self.launcher(*name_expressions, name))

    def launcher(self, expression, name):
        assert expression == name

        def launch(grid, block, args):
            assert self.stream == STREAM and all(type(arg) in (int, float) for arg in args)
            self.launches.append((name, *grid, *block, args))
            if name in self.kernels:
                slots = b''.join(struct.pack('q' if type(arg) is int else 'd', arg) for arg in args)
                assert self.kernels[name](*grid, *block, slots, len(args)), 'the number of arguments'

        return launch


@contextlib.contextmanager
def cupy_on_cpu() -> Iterator[tuple[StandIn, Any]]:
    """The stand-in, and the backend's module on top of it for tensors on the CPU, beside a real one."""
    stand_in = StandIn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'cupy', stand_in)
        spec = importlib.util.find_spec('timm_snn.ops.backends.cupy')
        assert spec and spec.loader
        module: Any = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        patch.setattr(torch.cuda, 'device', lambda device: contextlib.nullcontext())
        patch.setattr(torch.cuda, 'current_stream', lambda device: types.SimpleNamespace(cuda_stream=STREAM))
        patch.setattr(module, '_stream', lambda pointer: stand_in.use_stream(module._TorchStream(pointer)))
        yield stand_in, module


def compile_for_cpu(names: list[str], folder: Path) -> dict[str, Callable[..., bool]]:
    """The kernels of lif.cu with these C++ names."""
    lines = ['#include "cuda_on_cpu.h"', SOURCE]
    lines += [
        f'extern "C" bool kernel_{i}(unsigned grid, unsigned block, const uint64_t* slots, unsigned num_slots) {{'
        f' return launch({name}, grid, block, slots, num_slots); }}'
        for i, name in enumerate(names)
    ]
    (folder / 'kernels.cpp').write_text('\n'.join(lines))
    headers = Path(__file__).parent
    command = ['g++', *FLAGS, '-fPIC', '-shared', f'-I{headers}', 'kernels.cpp', '-o', 'kernels.so']
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / 'kernels.so'))
    for i in range(len(names)):
        library[f'kernel_{i}'].restype = ctypes.c_bool
    return {name: library[f'kernel_{i}'] for i, name in enumerate(names)}
