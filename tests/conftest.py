"""Fixtures of the whole suite: fixed seeds, quiet threads, no state left in the backend switch."""

import os

import pytest
import timm
import torch

import timm_snn
from tests.support.hub_server import LoopbackHub
from timm_snn.layers import ConvBn, ConvBnLif, RunningFiringRate
from timm_snn.ops import backend


def pytest_addoption(parser):
    parser.addoption('--backend', metavar='NAME', help='the one backend that tests/ops/test_conformance.py runs')


def pytest_configure(config):
    """Triton is interpreted where there is no GPU, which it wants to know before it is imported.

    Workers of pytest-xdist share the cores, and so do the processes that their tests start.
    """
    if config.getoption('--backend') == 'triton' and not torch.cuda.is_available():
        os.environ['TRITON_INTERPRET'] = '1'
    workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ['OMP_NUM_THREADS'] = str(threads)


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backend, '_in_environment', None)
    monkeypatch.setattr(backend, '_choices', {})  # a test may change what a backend can run
    yield
    timm_snn.set_backend(None)


@pytest.fixture
def poisoned():
    """Memory that an op allocates and never writes is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills uninitialised memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A Hugging Face Hub of this test's own, which huggingface_hub in this process talks to, with an empty cache."""
    with LoopbackHub() as server:
        server.use_in_process(monkeypatch, tmp_path_factory.mktemp('hf_home'))
        yield server


@pytest.fixture
def small() -> timm_snn.MSViT:
    """The smallest member in float64 eval mode, where spikes do not depend on threads."""
    return lively(timm.create_model('msvit_4_96').double().eval())


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Batch norms that let every neuron fire sometimes: an untrained net is silent in its last layers."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.8, 1.6)
            torch.nn.init.uniform_(module.bias, 0.5, 1.2)
            module.running_var.fill_(0.5)
        elif isinstance(module, RunningFiringRate):
            module.running.fill_(0.2)  # without which an untrained model goes by the batch
    for unit in model.modules():
        if isinstance(unit, ConvBn) and not isinstance(unit, ConvBnLif):  # currents, which add up in a stream
            torch.nn.init.uniform_(unit.bn.bias, 0.0, 0.6)
        if isinstance(unit, ConvBn) and isinstance(unit.conv, torch.nn.modules.conv._ConvNd):
            # the variance of currents over what it is with PyTorch's initial weights; a family may start with less
            scale = 3 * unit.conv.weight[0].numel() * unit.conv.weight.detach().square().mean()
            if scale < 0.5:
                unit.bn.running_var.mul_(scale)
    return model
