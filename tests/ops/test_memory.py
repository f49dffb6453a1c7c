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
print(*(faults() for _ in range(8)))  # the first ones may find another place in the heap
"""


@pytest.mark.skipif(sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc', reason='it is for glibc')
def test_the_next_tensor_has_the_pages_of_the_last_one(tmp_path):
    file = tmp_path / 'faults.py'
    file.write_text(FAULTS)
    first, *_, last = map(int, run_script([file], tmp_path, check=True).stdout.split())
    assert first > 1000 and last < first / 10
