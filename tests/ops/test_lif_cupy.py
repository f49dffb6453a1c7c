"""The CuPy backend without a GPU: its kernels compiled for the CPU and launched by a stand-in for CuPy."""

import contextlib
import ctypes
import importlib.util
import random
import re
import shutil
import struct
import subprocess
import sys
import types
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import timm_snn
from timm_snn.ops import backend
from timm_snn.ops.backends import lif_operator, reference
from timm_snn.ops.backends.cuda_source import OPTIONS, SOURCE, STORED
from timm_snn.ops.neuron import membrane_dtype
from timm_snn.ops.surrogate import SURROGATES, get_surrogate

SHIM = Path(__file__).with_name('cuda_on_cpu')
STREAM = 0x5EED
FLAGS = ['-std=c++17', '-O1', '-ffp-contract=off', '-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas']


class FakeCupy(types.ModuleType):
    """Records every launch, and runs it if `kernels` has the name."""

    def __init__(self):
        super().__init__('cupy')
        self.launches: list[tuple[str, int, int, tuple]] = []
        self.kernels: dict = {}
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


@pytest.fixture
def fake(monkeypatch):
    """The backend's module on top of the stand-in, for tensors on the CPU; fresh memory is poisoned with NaN."""
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, 'cupy', fake)
    spec = importlib.util.find_spec('timm_snn.ops.backends.cupy')
    fake.backend = importlib.util.module_from_spec(spec)  # beside the real one, if that has been imported
    monkeypatch.setitem(sys.modules, spec.name, fake.backend)
    spec.loader.exec_module(fake.backend)
    monkeypatch.setattr(torch.cuda, 'device', lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: types.SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(fake.backend, '_stream', lambda pointer: fake.use_stream(fake.backend._TorchStream(pointer)))
    torch.use_deterministic_algorithms(True)
    yield fake
    torch.use_deterministic_algorithms(False)


def seeded_cases(count: int) -> list[dict]:
    """Every combination of what the gradient's formula depends on, with the rest drawn at random."""
    draw = random.Random(0).choice
    formulas = product(SURROGATES, (0.0, -0.2, None), (True, False), (True, False))
    return [
        dict(
            settings=dict(
                tau=draw([2.0, 4.0, 1.7, torch.tensor(2.0), torch.tensor([1.7], dtype=torch.float64)]),
                v_threshold=draw([1.0, 0.6]),
                v_reset=v_reset,
                decay_input=decay_input,
                surrogate=get_surrogate(surrogate),
                detach_reset=detach_reset,
            ),
            dtype=draw([torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]),
            num_steps=draw([1, 2, 4, 8, 9, 17]),
            layout=draw(sorted(LAYOUTS)),
            shape=draw([(2, 8, 4, 2), (3, 5, 7), (2, 3, 2), (1, 6), (2, 16, 9, 8)]),
            given_v=draw([True, False]),
            needs_v=draw([True, False]),
            upstream=draw(['dense', 'transposed', 'constant']),
        )
        for surrogate, v_reset, decay_input, detach_reset in formulas
        for _ in range(count)
    ]


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def shifted(x: Tensor) -> Tensor:
    """Begins one element after an aligned address."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)


LAYOUTS = {
    'contiguous': lambda x: x,
    'channels_last': channels_last,
    'batch first': lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    'static': lambda x: x[:1].expand_as(x),
    'shifted': shifted,
    'every other': lambda x: x.repeat_interleave(2, -1)[..., ::2],
    'padded steps': lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
}
CASES = seeded_cases(3)
TOLERANCES = {  # of gradients, relative and absolute
    torch.float64: (1e-10, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 1e-5),
    torch.bfloat16: (1e-2, 1e-5),
}


def run(case: dict, lif) -> dict[str, Tensor]:
    """Spikes, last membrane and every gradient of a case, whose numbers do not depend on `lif`."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    settings, dtype = dict(case['settings']), case['dtype']
    shape = (case['num_steps'], *case['shape'])
    x = LAYOUTS[case['layout']]((1.5 * randn(*shape) + 0.5).to(dtype)).requires_grad_()
    leaves = {'x': x}
    v = None
    if case['given_v']:
        v = shifted(randn(*shape[1:]).to(membrane_dtype(dtype)))
        leaves['v'] = v.requires_grad_()
    if isinstance(settings['tau'], Tensor):
        leaves['tau'] = settings['tau'] = settings['tau'].clone().requires_grad_()
    spikes, v_last = lif(x, v, needs_v=case['needs_v'], **settings)
    if case['upstream'] == 'transposed':
        upstream = randn(*reversed(shape)).permute(*reversed(range(len(shape))))
    else:
        upstream = randn(*shape) if case['upstream'] == 'dense' else randn(1).expand(shape)
    outputs, gradients = {'spikes': spikes}, [upstream.to(dtype)]
    if case['needs_v']:
        outputs['v_last'] = v_last
        gradients.append(randn(*v_last.shape).to(v_last.dtype))
    found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), gradients)
    return outputs | {f'gradient of {name}': grad for name, grad in zip(leaves, found, strict=True)}


@pytest.fixture
def build(tmp_path):
    """Compiles kernels, given by their C++ names, for the CPU."""
    if shutil.which('g++') is None:
        pytest.skip('needs g++')

    def build(wanted: list[str]) -> dict:
        lines = ['#include "cuda_on_cpu.h"', SOURCE]
        lines += [
            f'extern "C" bool kernel_{i}(unsigned grid, unsigned block, const uint64_t* slots, unsigned num_slots) {{'
            f' return launch({name}, grid, block, slots, num_slots); }}'
            for i, name in enumerate(wanted)
        ]
        (tmp_path / 'kernels.cpp').write_text('\n'.join(lines))
        command = ['g++', *FLAGS, '-fPIC', '-shared', f'-I{SHIM}', 'kernels.cpp', '-o', 'kernels.so']
        subprocess.run(command, cwd=tmp_path, check=True)
        library = ctypes.CDLL(str(tmp_path / 'kernels.so'))
        for i in range(len(wanted)):
            library[f'kernel_{i}'].restype = ctypes.c_bool
        return {name: library[f'kernel_{i}'] for i, name in enumerate(wanted)}

    return build


def test_the_kernels_compute_what_the_reference_does(fake, build):
    """Spikes and last membranes to the bit, gradients up to rounding, in every combination of settings."""
    for case in CASES:
        run(case, fake.backend.lif)
    fake.kernels = build(sorted({name for name, *_ in fake.launches}))
    for case in CASES:
        ours, expected = run(case, fake.backend.lif), run(case, reference.lif)
        assert ours.keys() == expected.keys()
        for name, value in ours.items():
            where = f'{name} of {case}'
            if name in ('spikes', 'v_last'):
                assert torch.equal(value, expected[name]), where
            else:
                assert value.dtype == expected[name].dtype, where
                rtol, atol = TOLERANCES[case['dtype']]
                torch.testing.assert_close(
                    value, expected[name], rtol=rtol, atol=atol, msg=lambda text, where=where: f'{where}: {text}'
                )


SETTINGS = dict(
    tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, surrogate=get_surrogate('sigmoid'), detach_reset=True
)


@pytest.mark.parametrize(('dtype', 'stored'), STORED.items())
def test_a_kernel_runs_in_the_type_of_its_input_under_autocast_too(fake, dtype, stored):
    x = torch.zeros(4, 2, 64, dtype=dtype, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        spikes, _ = fake.backend.lif(x, None, needs_v=False, **SETTINGS)
    spikes.sum().backward()
    width = 16 // x.element_size()
    (forward, *sizes, _), (backward, *_) = fake.launches
    assert forward == f'lif_forward<{stored}, 4, {width}, false, true, true>'
    assert backward == f'lif_backward<{stored}, 4, {width}, false, true, true, true, SIGMOID, false>'
    assert sizes == [1, 128]  # blocks, threads


def test_a_launch_passes_raw_pointers_of_torchs_memory(fake):
    x = torch.zeros(3, 2, 700)
    spikes, v = fake.backend.lif(x, None, needs_v=True, **{**SETTINGS, 'tau': torch.tensor(3.0)})
    ((name, blocks, threads, args),) = fake.launches
    assert name == 'lif_forward<float, 3, 4, false, true, false>' and (blocks, threads) == (3, 128)
    *pointers, tau, threshold, rest, num_neurons, num_steps, stride = args
    assert pointers[:4] == [spikes.data_ptr(), v.data_ptr(), x.data_ptr(), 0] and pointers[4] != 0
    assert (tau, threshold, rest, num_neurons, num_steps, stride) == (0.0, 1.0, 0.0, 1400, 3, 1400)


def test_layouts_are_read_where_they_lie(fake, monkeypatch):
    """No copy: the kernel gets the address of x, and 0 as the distance between the steps of a static image."""
    for x in (
        channels_last(torch.zeros(4, 2, 8, 3, 5)),
        torch.zeros(1, 2, 8, 3, 5).expand(4, -1, -1, -1, -1),
        torch.zeros(4, 4, 8, 3, 5)[:, :2],
        torch.zeros(4 * 2 * 8 * 15 + 1)[1:].view(4, 2, 8, 3, 5),
    ):
        fake.launches.clear()
        spikes, _ = fake.backend.lif(x, None, needs_v=False, **SETTINGS)
        ((name, _, _, args),) = fake.launches
        assert args[2] == x.data_ptr() and args[-1] == x.stride(0)
        assert spikes.stride()[1:] == x.stride()[1:]
        assert name.startswith(f'lif_forward<float, 4, {1 if x.storage_offset() else 4},')


@pytest.mark.parametrize('shape', [(3, 0, 4), (2, 1, 0)])
def test_nothing_is_launched_for_nothing(fake, shape):
    x, tau = torch.ones(shape, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    spikes, v = fake.backend.lif(x, None, needs_v=True, **{**SETTINGS, 'tau': tau})
    spikes.sum().backward()
    assert spikes.shape == shape and v.shape == shape[1:] and x.grad.shape == shape and tau.grad == 0
    assert fake.launches == []


def test_a_kernel_is_compiled_once(fake):
    for _ in range(3):
        fake.backend.lif(torch.zeros(4, 2, 8), None, needs_v=False, **SETTINGS)
    assert fake.backend._kernel.cache_info().misses == 1


def test_torch_compile_sees_one_operator(fake):
    x = torch.zeros(4, 2, 8, requires_grad=True)
    compiled = torch.compile(  # not through the stand-in, which torch.compile would remember for other tests
        lambda x: lif_operator.lif('cupy', x, None, needs_v=False, **SETTINGS)[0], fullgraph=True, backend='aot_eager'
    )
    compiled(x).sum().backward()
    assert [name.split('<')[0] for name, *_ in fake.launches] == ['lif_forward', 'lif_backward']


def test_why_not_says_what_to_do(fake, monkeypatch):
    x = torch.ones(2, 3)
    monkeypatch.setattr(backend, '_modules', {'cupy': fake.backend})
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(timm_snn.BackendUnavailable, match=r"'cupy', asked for by the argument `backend`.*NVIDIA GPU"):
        timm_snn.lif(x, backend='cupy')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    assert fake.backend.why_not() is None
    assert 'CUDA device, got one on cpu' in fake.backend.why_not(x)
    on_gpu = types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert fake.backend.why_not(on_gpu) is None
    on_gpu.dtype = torch.float8_e5m2
    assert 'float64, got torch.float8_e5m2' in fake.backend.why_not(on_gpu)
    monkeypatch.setattr(torch.version, 'cuda', None)  # ROCm has torch.cuda too
    assert 'NVIDIA GPU' in fake.backend.why_not(on_gpu)


def test_a_missing_compiler_is_told_from_a_missing_cupy(fake, monkeypatch):
    def fail():
        raise RuntimeError('no libnvrtc.so')

    monkeypatch.setattr(fake.cuda.nvrtc, 'getVersion', fail)
    assert re.match(r"CuPy cannot load its compiler .*no libnvrtc.*'timm-snn\[cupy", fake.backend._why_no_compiler())


def test_without_cupy_the_report_names_the_extras(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cupy', None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, 'timm_snn.ops.backends.cupy', raising=False)
    monkeypatch.setattr(backend, '_modules', {})
    assert re.search(r"cupy +.*pip install 'timm-snn\[cupy\]', or 'timm-snn\[cupy13\]'", timm_snn.backend_report())


def test_cupy_imports_without_a_driver():
    """In a process of its own: what this one has is a stand-in."""
    pytest.importorskip('cupy')
    code = 'import timm_snn; print(timm_snn.backend_report()); from timm_snn.ops.backends import cupy'
    report = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert re.search(r'^cupy +(available|it needs an NVIDIA GPU)', report, re.MULTILINE)
