"""timm's own model tests, all that apply, on our models (`tests/support/timm_suite.py`).

They take minutes on most, so that one model has them every time: what they test is in the base that all families share.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import timm

import timm_snn
from tests.support.families import MODELS
from tests.support.timm_suite import fetch_sdist

ALWAYS = 'msvit_4_96'


@pytest.mark.parametrize(
    'name', [ALWAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name != ALWAYS)]
)
def test_timms_own_tests_pass(name):
    try:
        fetch_sdist()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"pip cannot fetch timm's source distribution: {error.stderr.splitlines()[-1]}")
    suite = Path(__file__).parents[1] / 'support' / 'timm_suite.py'
    result = subprocess.run([sys.executable, suite, name], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    last = result.stdout.splitlines()[-1]
    # ten of a model, one of each tag, and two of each tag whose weights the package has
    tags = timm.list_models(f'{name}.*', include_tags=True)
    assert last.startswith(f'{10 + len(tags) + 2 * len(set(tags) & set(timm_snn.list_pretrained()))} passed'), last
    assert 'skipped' not in last
