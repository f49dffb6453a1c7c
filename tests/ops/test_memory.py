"""Memory of freed tensors."""

import platform
import sys

import pytest

from tests.support.processes import run_script

FAULTS = """
import resource, torch
from timm_snn.ops import keep_freed_memory
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
print(first, max(faults() for _ in range(5)))
"""


@pytest.mark.skipif(sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc', reason='it is for glibc')
def test_the_next_tensor_has_the_pages_of_the_last_one(tmp_path):
    file = tmp_path / 'faults.py'
    file.write_text(FAULTS)
    first, later = map(int, run_script([file], tmp_path, check=True).stdout.split())
    assert first > 1000 and later < first / 10
