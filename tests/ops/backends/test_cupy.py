"""How the CuPy backend launches its kernels, on a stand-in for CuPy; test_conformance.py compares what they compute."""

import re
import subprocess
import sys
import types

import pytest
import torch
from torch import Tensor

import timm_snn
from tests.support.cuda_on_cpu import cupy_on_cpu
from timm_snn.ops import Neuron, backend
from timm_snn.ops.backends.cuda_source import STORED

# the kernels do not run here: outputs are whatever the memory holds
pytestmark = pytest.mark.filterwarnings('ignore::UserWarning')


@pytest.fixture
def cupy():
    """The stand-in for CuPy and, as `backend`, the module on top of it."""
    with cupy_on_cpu() as (stand_in, module):
        stand_in.backend = module
        yield stand_in


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


@pytest.mark.parametrize(('dtype', 'stored'), STORED.items())
def test_a_kernel_runs_in_the_type_of_its_input_under_autocast_too(cupy, dtype, stored):
    x = torch.zeros(4, 2, 64, dtype=dtype, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        spikes, _ = cupy.backend.lif(x, None, None, Neuron(), False)
    spikes.sum().backward()
    width = 16 // x.element_size()
    (forward, *sizes, _), (backward, *_) = cupy.launches
    assert forward == f'lif_forward<{stored}, 4, {width}, false, true, true, false>'
    assert backward == f'lif_backward<{stored}, 4, {width}, false, true, true, false, true, SIGMOID, false>'
    assert sizes == [1, 128]  # blocks, threads


def test_a_launch_passes_raw_pointers_of_torchs_memory(cupy):
    x = torch.zeros(3, 2, 700)
    spikes, v = cupy.backend.lif(x, None, torch.tensor(3.0), Neuron(tau=None), True)
    ((name, blocks, threads, args),) = cupy.launches
    assert name == 'lif_forward<float, 3, 4, false, true, false, false>' and (blocks, threads) == (3, 128)
    *pointers, tau, threshold, rest, num_neurons, num_steps, stride = args
    assert pointers[:4] == [spikes.data_ptr(), v.data_ptr(), x.data_ptr(), 0] and pointers[4] != 0
    assert (tau, threshold, rest, num_neurons, num_steps, stride) == (0.0, 1.0, 0.0, 1400, 3, 1400)


def test_layouts_are_read_where_they_lie(cupy, monkeypatch):
    """No copy: the kernel gets the address of x, and 0 as the distance between the steps of a static image."""
    for x in (
        channels_last(torch.zeros(4, 2, 8, 3, 5)),
        torch.zeros(1, 2, 8, 3, 5).expand(4, -1, -1, -1, -1),
        torch.zeros(4, 4, 8, 3, 5)[:, :2],
        torch.zeros(4 * 2 * 8 * 15 + 1)[1:].view(4, 2, 8, 3, 5),
    ):
        cupy.launches.clear()
        spikes, _ = cupy.backend.lif(x, None, None, Neuron(), False)
        ((name, _, _, args),) = cupy.launches
        assert args[2] == x.data_ptr() and args[-1] == x.stride(0)
        assert spikes.stride()[1:] == x.stride()[1:]
        assert name.startswith(f'lif_forward<float, 4, {1 if x.storage_offset() else 4},')


@pytest.mark.parametrize('shape', [(3, 0, 4), (2, 1, 0)])
def test_nothing_is_launched_for_nothing(cupy, shape):
    x, tau = torch.ones(shape, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    spikes, v = cupy.backend.lif(x, None, tau, Neuron(tau=None), True)
    spikes.sum().backward()
    assert spikes.shape == shape and v.shape == shape[1:] and x.grad.shape == shape and tau.grad == 0
    assert cupy.launches == []


def test_a_kernel_is_compiled_once(cupy):
    for _ in range(3):
        cupy.backend.lif(torch.zeros(4, 2, 8), None, None, Neuron(), False)
    assert cupy.backend._kernel.cache_info().misses == 1


def test_torch_compile_sees_one_operator(cupy):
    x = torch.zeros(4, 2, 8, requires_grad=True)
    neuron = Neuron()
    compiled = torch.compile(
        lambda x: cupy.backend.lif(x, None, None, neuron, False)[0], fullgraph=True, backend='aot_eager'
    )
    compiled(x).sum().backward()
    assert [name.split('<')[0] for name, *_ in cupy.launches] == ['lif_forward', 'lif_backward']


def test_why_not_says_what_to_do(cupy, monkeypatch):
    x = torch.ones(2, 3)
    monkeypatch.setattr(backend, '_modules', {'cupy': cupy.backend})
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(timm_snn.BackendUnavailable, match=r"'cupy', asked for by the argument `backend`.*NVIDIA GPU"):
        timm_snn.lif(x, backend='cupy')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    assert cupy.backend.why_not() is None
    assert 'CUDA device, got one on cpu' in cupy.backend.why_not(x)
    on_gpu = types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    assert cupy.backend.why_not(on_gpu) is None
    on_gpu.dtype = torch.float8_e5m2
    assert 'float64, got torch.float8_e5m2' in cupy.backend.why_not(on_gpu)
    monkeypatch.setattr(torch.version, 'cuda', None)  # ROCm has torch.cuda too
    assert 'NVIDIA GPU' in cupy.backend.why_not(on_gpu)


def test_a_missing_compiler_is_told_from_a_missing_cupy(cupy, monkeypatch):
    def fail():
        raise RuntimeError('no libnvrtc.so')

    monkeypatch.setattr(cupy.cuda.nvrtc, 'getVersion', fail)
    assert re.match(r"CuPy cannot load its compiler .*no libnvrtc.*'timm-snn\[cupy", cupy.backend._why_no_compiler())


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
