"""lif.cu through NVRTC, CuPy's compiler, which needs neither a GPU nor CuPy; torch's CUDA wheels bring it."""

import importlib.util
import re
from itertools import product
from pathlib import Path

import pytest
import torch

from timm_snn.ops import Neuron
from timm_snn.ops.backends.cuda_source import (
    OPTIONS,
    SOURCE,
    STORED,
    backward_kernel,
    forward_kernel,
    neurons_per_thread,
)
from timm_snn.ops.surrogate import SURROGATES


def kernels() -> list[str]:
    """Each type with all its neurons in 16 bytes, each number of steps that is a kernel of its own, each formula."""
    names = []
    for dtype, num_steps in product(STORED, (1, 4, 8, 9)):
        steps = torch.empty(num_steps, 64, dtype=dtype)
        width = neurons_per_thread(steps, strides=(64,))
        names += [forward_kernel(steps, width, Neuron()), backward_kernel(steps, width, Neuron())]
    steps = torch.empty(4, 4)
    for tau, v_reset, decay_input in product((2.0, 1.7, None), (0.0, None), (True, False)):
        names.append(forward_kernel(steps, 1, Neuron(tau, 1.0, v_reset, decay_input)))
        for surrogate, detach_reset in zip(SURROGATES.values(), (True, False, True, False), strict=True):
            names.append(backward_kernel(steps, 1, Neuron(tau, 1.0, v_reset, decay_input, surrogate(), detach_reset)))
    names += [kernel(steps, 2, Neuron(None), by_channel=True) for kernel in (forward_kernel, backward_kernel)]
    return list(dict.fromkeys(names))


@pytest.fixture(scope='module')
def nvrtc():
    nvrtc = pytest.importorskip('cuda.bindings.nvrtc', reason="needs cuda-bindings, as in torch's CUDA wheels")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:
        pytest.skip(f'needs NVRTC: {error}')
    return nvrtc


@pytest.fixture(scope='module')
def headers() -> Path:
    package = importlib.util.find_spec('nvidia')
    folders = [Path(folder) for folder in package.submodule_search_locations] if package else []
    found = [header.parent for folder in folders for header in folder.glob('*/include/cuda_fp16.h')]
    if not found:
        pytest.skip("needs CUDA's headers, as in torch's CUDA wheels")
    return found[0]


def compiled(nvrtc, headers: Path, names: list[str], architecture: str) -> tuple[bytes, dict[str, str]]:
    """The binary, and the PTX of every kernel. Fails on a warning."""

    def check(result):
        assert result[0] == nvrtc.nvrtcResult.NVRTC_SUCCESS, result[0]
        return result[1] if len(result) == 2 else None

    def text(size, get) -> bytes:
        buffer = b' ' * check(size(program))
        check(get(program, buffer))
        return buffer.rstrip(b'\0')

    program = check(nvrtc.nvrtcCreateProgram(SOURCE.encode(), b'lif.cu', 0, [], []))
    for name in names:
        check(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [option.encode() for option in (*OPTIONS, f'-arch={architecture}', f'-I{headers}')]
    result = nvrtc.nvrtcCompileProgram(program, len(options), options)
    assert text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog) == b''
    check(result)
    entries = {
        re.search(r'\w+', entry).group(): entry
        for entry in text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX).decode().split('.entry ')[1:]
    }
    ptx = {name: entries[check(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode()] for name in names}
    return text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN), ptx


@pytest.fixture(scope='module', params=['sm_80', 'sm_90'])
def build(request, nvrtc, headers):
    return compiled(nvrtc, headers, kernels(), request.param)


def test_every_kernel_compiles_without_a_warning(build):
    binary, ptx = build
    assert binary[:4] == b'\x7fELF' and list(ptx) == kernels()


def test_no_product_is_fused_with_a_sum(build):
    """Else membranes differ from the reference's in the last bit; exp, in two of the derivatives, may do so inside."""
    for name, code in build[1].items():
        if 'SIGMOID' not in name and 'ERF' not in name:
            assert 'fma.' not in code and 'mad.rn.f' not in code, name


def test_the_division_by_tau_is_the_rounded_one_or_an_exact_product(build):
    exact = 'lif_forward<float, 4, 1, false, true, true, false>'
    rounded = 'lif_forward<float, 4, 1, false, true, false, false>'
    assert build[1][exact].count('div.') == 1  # 1 / tau
    assert build[1][rounded].count('div.rn.f32') == 4 and 'div.approx' not in build[1][rounded]


def test_memory_is_moved_in_16_bytes_and_nothing_is_spilled(build):
    for name, code in build[1].items():
        assert '.local' not in code, name
    for wide, kind in (
        ('lif_forward<float, 4, 4,', 'v4.f32'),
        ('lif_backward<double, 8, 2,', 'v2.f64'),
        ('lif_forward<__half, 8, 8,', r'v4.[ub]32'),
        ('lif_backward<__nv_bfloat16, 0, 8,', r'v4.[ub]32'),
    ):
        (code,) = (code for name, code in build[1].items() if name.startswith(wide))
        assert re.search(rf'ld\.global\.nc\.{kind}', code) and re.search(rf'st\.global\.{kind}', code), wide
        assert not re.search(r'(ld|st)\.global\.(nc\.)?[ub]16', code), wide


def test_the_width_follows_the_odd_one_out():
    steps = torch.empty(4, 64, dtype=torch.bfloat16)
    membrane = torch.empty(64)
    assert neurons_per_thread(steps, strides=(64,)) == 8
    assert neurons_per_thread(steps, membrane, None, strides=(64, 0)) == 8  # 0: every step is the same memory
    assert neurons_per_thread(steps, strides=(64, 12)) == 4
    assert neurons_per_thread(steps[:, :6], strides=(64,)) == 2
    assert neurons_per_thread(steps[:, 1:], strides=(64,)) == 1
    assert neurons_per_thread(steps[:, :32], membrane[2:], strides=(64,)) == 2
    assert neurons_per_thread(torch.empty(2, 64, dtype=torch.float64), strides=(64,)) == 2


def test_only_an_exact_reciprocal_replaces_a_division():
    steps = torch.empty(4, 4)
    for tau, exact in ((2.0, True), (1.0, True), (3.0, False), (1.7, False), (None, False)):
        name = forward_kernel(steps, 1, Neuron(tau))
        assert name.endswith('true, false>' if exact else 'false, false>')


def test_eight_steps_are_unrolled_and_more_are_not():
    for num_steps, expected in ((1, 1), (8, 8), (9, 0), (32, 0)):
        name = forward_kernel(torch.empty(num_steps, 4), 1, Neuron())
        assert name.startswith(f'lif_forward<float, {expected}, 1,')
