"""Tests for families and neurons of one's own: what every one of this package is tested for.

    import pytest
    from timm_snn import testing

    @pytest.fixture(scope='module')
    def model():
        return testing.make('myformer_3_16')

    @pytest.mark.parametrize('check', testing.FAMILY_CHECKS)
    def test_family(check, model):
        check(model)

    @pytest.mark.parametrize('check', testing.NEURON_CHECKS)
    def test_neuron(check):
        check(MyNeuron)

A check raises AssertionError, with what it found; any test runner will do. `record_golden` writes a few outputs into a
small file, and `check_golden` compares with them, so that a change of what a model computes is seen.
"""

from .families import *  # noqa: F403
from .neurons import *  # noqa: F403
