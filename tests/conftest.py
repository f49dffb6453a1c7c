"""Fixtures of the whole suite: fixed seeds, quiet threads, no state left in the backend switch."""

import os

import pytest
import timm
import torch

import timm_snn
from tests.support.hub_server import LoopbackHub
from timm_snn.ops import backend
from timm_snn.testing import lively as lively


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
