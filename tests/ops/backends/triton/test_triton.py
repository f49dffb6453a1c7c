"""Triton without a GPU: kernels run in its interpreter, in a process of their own, and compile to cubins here."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import timm_snn
from timm_snn.ops import Neuron
from timm_snn.ops.surrogate import Sigmoid

triton = pytest.importorskip('triton', reason='triton is not installed; it is for Linux only')

from timm_snn.ops.backends import triton as kernels  # noqa: E402

ROOT = Path(__file__).parents[4]
FILES = ['tests/ops/test_conformance.py', 'tests/ops/backends/triton/interpreted.py']
VERSION = tuple(int(part) for part in triton.__version__.split('.')[:2])


@pytest.mark.skipif(VERSION < (3, 8), reason='the interpreter of older versions cannot loop with new numpy')
def test_in_the_interpreter():
    """The interpreter must be chosen before triton is imported, and excludes compiling in the same process."""
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--backend', 'triton', *FILES],
        env={**os.environ, 'TRITON_INTERPRET': '1'},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and ' passed' in result.stdout, result.stdout + result.stderr


class NoGpu:
    """A driver that names a GPU to compile for and has none."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget('cuda', self.capability, 32)


@pytest.fixture(params=[80, 90], ids=lambda capability: f'sm_{capability}')
def compiled(request, monkeypatch, tmp_path):
    """Launches compile what they would run; returns what was compiled, so far."""
    kernels: list = []
    run = triton.runtime.JITFunction.run
    monkeypatch.setattr(
        triton.runtime.JITFunction,
        'run',
        lambda self, *args, **kwargs: kernels.append(run(self, *args, **{**kwargs, 'warmup': True})),
    )
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))  # compile anew
    triton.runtime.driver.set_active(NoGpu(request.param))
    yield kernels
    with contextlib.suppress(RuntimeError):  # where there is no driver to go back to
        triton.runtime.driver.reset_active()


def check(kernels: list, expected: list[str], fused_in_float64: bool = False) -> None:
    assert [kernel.name for kernel in kernels] == expected
    for kernel in kernels:
        assert kernel.asm['cubin'].startswith(b'\x7fELF')
        assert not kernel.metadata.enable_fp_fusion
        assert fused_in_float64 or 'fma' not in kernel.asm['ptx']  # exp in float64 is made of them


@pytest.mark.parametrize(
    ('num_steps', 'dtype'),
    [(4, torch.float32), (4, torch.bfloat16), (4, torch.float16), (4, torch.float64), (20, torch.float32)],
)
def test_the_neuron_compiles(compiled, dtype, num_steps):
    x = torch.zeros(num_steps, 2, 512, dtype=dtype, requires_grad=True)
    spikes, _ = kernels.lif(x, None, None, Neuron(), False)
    spikes.sum().backward()
    check(compiled, ['_forward_kernel', '_backward_kernel'], dtype == torch.float64)
    for kernel in compiled:  # 16 bytes at a time
        loads = [line for line in kernel.asm['ptx'].splitlines() if 'ld.global' in line]
        assert loads and all('.v4.b32' in line or '.v2.b64' in line for line in loads)


def test_the_neuron_compiles_with_all_options(compiled):
    x, v = torch.zeros(3, 5, requires_grad=True), torch.zeros(5, requires_grad=True)
    tau = torch.tensor(2.0, requires_grad=True)
    for surrogate in (timm_snn.ops.ATan(), timm_snn.ops.PiecewiseQuadratic(), timm_snn.ops.Erf()):
        neuron = Neuron(None, v_reset=None, decay_input=False, surrogate=surrogate, detach_reset=False)
        spikes, v_last = kernels.lif(x, v, tau, neuron, True)
        (spikes.sum() + v_last.sum()).backward()
    check(compiled, ['_forward_kernel', '_backward_kernel'] * 3)
    assert 'div.rn.' in compiled[0].asm['ptx']  # Triton 3.5 flushes subnormal numbers as well, div.rn.ftz


def test_a_time_constant_for_each_channel_compiles(compiled):
    x, tau = torch.zeros(3, 2, 5, 7, requires_grad=True), torch.full((5,), 2.0, requires_grad=True)
    kernels.lif(x, None, tau, Neuron(None), False)[0].sum().backward()
    check(compiled, ['_forward_kernel', '_backward_kernel'])


@pytest.mark.parametrize(('channels_last', 'dtype'), [(False, torch.float32), (True, torch.bfloat16)])
@pytest.mark.parametrize('pool', [False, True])
def test_batch_norm_compiles(compiled, channels_last, pool, dtype):
    x = torch.zeros(4, 2, 64, 8, 8, dtype=dtype)
    x = (x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x).requires_grad_()
    weight, bias = torch.ones(64, requires_grad=True), torch.zeros(64, requires_grad=True)
    kernels.bn_lif(x, weight, bias, None, Neuron(), 1e-5, pool)[0].sum().backward()
    kernels.affine_lif(x.detach(), weight.detach(), bias.detach(), None, Neuron(), pool)
    last = 'unpool_kernel' if pool else 'grad_x_kernel'
    check(
        compiled,
        ['statistics_kernel', 'combine_kernel', 'fire_kernel', 'gradient_sums_kernel', last, 'fire_kernel'],
    )


def test_batch_norm_of_long_sequences_compiles(compiled):
    x, weight = torch.zeros(20, 2, 4, 8, 8, requires_grad=True), torch.ones(4)
    kernels.bn_lif(x, weight, weight, None, Neuron(), 1e-5)[0].sum().backward()
    check(compiled, ['statistics_kernel', 'combine_kernel', 'fire_kernel', 'gradient_sums_kernel', 'grad_x_kernel'])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_mssa_compiles(compiled, dtype):
    x = torch.zeros(4, 2, 3, 64, 49, dtype=dtype, requires_grad=True)
    kernels.mssa([x, x], x, None, Neuron()).sum().backward()
    check(compiled, ['_mssa_kernel', '_forward_kernel', '_mask_backward_kernel', '_backward_kernel'])


def test_what_triton_cannot_run_is_refused_with_a_reason():
    with pytest.raises(
        timm_snn.BackendUnavailable, match=r"'triton'.* needs a tensor on a CUDA device, got one on cpu"
    ):
        timm_snn.lif(torch.ones(2, 3), backend='triton')
    if not torch.cuda.is_available():
        assert 'triton   it needs a CUDA device' in timm_snn.backend_report()


def test_a_surrogate_of_ones_own_is_for_torch(monkeypatch):
    monkeypatch.setattr(kernels, 'why_not', lambda x=None: None)  # as on a GPU

    class Mine(Sigmoid):
        pass

    with pytest.raises(timm_snn.BackendUnavailable, match=r"knows the surrogates .* got Mine: use backend='torch'"):
        timm_snn.lif(torch.ones(2, 3), surrogate=Mine(), backend='triton')
