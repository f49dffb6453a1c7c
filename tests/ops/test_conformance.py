"""Every backend against plain torch: `pytest tests/ops/test_conformance.py --backend NAME` runs one.

Without a name it runs those that this machine can, and with `-m gpu` those on its GPU. 'cupy' runs without a GPU with
its kernels compiled for the CPU, 'triton' in Triton's interpreter, which excludes all else in its process: by name, or
from backends/triton/test_interpreter.py.
"""

import contextlib
import shutil

import pytest
import torch

from tests.ops.conformance import (
    CASES,
    DTYPES,
    LARGE,
    LAYOUTS,
    assert_matches_reference,
    every_setting,
    run,
    seed_of,
)
from tests.support.cuda_on_cpu import compile_for_cpu, cupy_on_cpu
from timm_snn.ops import BackendUnavailable, bn_lif, lif
from timm_snn.ops import backend as switch
from timm_snn.ops.backends import inductor
from timm_snn.ops.surrogate import SURROGATES

pytestmark = [
    pytest.mark.usefixtures('poisoned'),
    # lanes of an interpreted kernel beyond the last neuron subtract infinities
    pytest.mark.filterwarnings('ignore:invalid value encountered:RuntimeWarning'),
]


MADE_OF_TORCH = ('torch', 'compile')  # on a GPU torch multiplies by 1 / tau, which rounds differently


def pytest_generate_tests(metafunc):
    """`target` is a backend and the device of its tensors."""
    if 'target' not in metafunc.fixturenames:
        return
    if name := metafunc.config.getoption('--backend'):
        switch.check_backend(name, '--backend')
        on_gpu = torch.cuda.is_available() and why_not(name, 'cuda') is None
        targets = [(name, 'cuda' if on_gpu else 'cpu')]
    else:
        targets = [(name, 'cpu') for name in switch.backends() if name not in ('torch', 'triton')]
        targets += [
            pytest.param((name, 'cuda'), marks=pytest.mark.gpu)
            for name in switch.backends()
            if name not in MADE_OF_TORCH
        ]
    metafunc.parametrize('target', targets, indirect=True, scope='module', ids='-'.join)


def why_not(name: str, device: str) -> str | None:
    """Why the backend cannot run a tensor on the device."""
    try:
        lif(torch.ones(1, 1, device=device), backend=name)
    except BackendUnavailable as reason:
        return str(reason)
    return None


@pytest.fixture(scope='module')
def target(request, tmp_path_factory):
    """The name of the backend, ready to run, and the device."""
    name, device = request.param
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if name == 'compile':  # without Inductor, which takes seconds for a setting; see backends/test_inductor.py
            patch.setattr(inductor, '_CPP_COMPILERS', ['not needed'])
            patch.setattr(inductor, 'run_compiled', lambda body, n, neuron, *args: body(*args, neuron)[:n])
        if request.param == ('cupy', 'cpu'):
            if shutil.which('g++') is None:
                pytest.skip('cupy without a GPU needs g++')
            stand_in, module = stack.enter_context(cupy_on_cpu())
            patch.setattr(module, 'why_not', lambda x=None: None)
            patch.setitem(switch._modules, 'cupy', module)
            for case in CASES:
                run(case, 'cupy', seed=seed_of(case))
            kernels = sorted({kernel for kernel, *_ in stand_in.launches})
            stand_in.kernels = compile_for_cpu(kernels, tmp_path_factory.mktemp('kernels'))
        if device == 'cuda' and not torch.cuda.is_available():
            pytest.skip('needs a CUDA device')
        if reason := why_not(name, device):
            refuse = pytest.fail if request.config.getoption('--backend') else pytest.skip
            refuse(reason)
        yield name, device


@pytest.fixture
def native(target):
    """`target`, if nothing interprets its kernels or stands in for their library."""
    if target in (('triton', 'cpu'), ('cupy', 'cpu')):
        pytest.skip('too slow, or not compiled, for what stands in for a GPU')
    return target


@pytest.mark.parametrize('case', CASES, ids=str)
def test_equals_the_reference(target, case):
    assert_matches_reference(case, *target)


@pytest.mark.parametrize('case', LARGE, ids=str)
def test_sums_over_many_positions_equal_the_reference(native, case):
    assert_matches_reference(case, *native)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('v_reset', [0.0, -0.2, None])
@pytest.mark.parametrize('surrogate', SURROGATES)
def test_every_setting_equals_the_reference(native, surrogate, v_reset, dtype):
    if native[1] == 'cuda':
        pytest.skip('compiles for an hour')
    for case in every_setting(surrogate, v_reset, dtype):
        assert_matches_reference(case, *native)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_the_variance_survives_a_large_mean(target, layout):
    backend, device = target
    x = LAYOUTS[layout](3 * torch.randn(4, 2, 3, 5, 6) + 1000).to(device)
    ones, mean, var = torch.ones(3, device=device), torch.zeros(3, device=device), torch.zeros(3, device=device)
    bn_lif(x, ones, ones, mean, var, training=True, momentum=1.0, backend=backend)
    exact = x.double().transpose(0, 2).flatten(1)
    torch.testing.assert_close((mean, var), (exact.mean(1).float(), exact.var(1).float()), rtol=1e-5, atol=0)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'static'])
def test_spikes_lie_in_memory_as_their_currents_do(target, layout):
    backend, device = target
    x = LAYOUTS[layout](torch.randn(4, 2, 6, 5, 3)).to(device)
    ones = torch.ones(6, device=device)
    for spikes in (
        lif(x, backend=backend),
        bn_lif(x, ones, ones, ones - 1, ones.clone(), training=True, backend=backend),
    ):
        assert spikes.stride()[1:] == x.stride()[1:]
