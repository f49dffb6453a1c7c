"""Importing the package registers the models and costs little beyond torch and timm."""

import re
import subprocess
import sys
from pathlib import Path

import timm_snn

PACKAGE = Path(timm_snn.__file__).parent


def test_import_registers_the_models_and_leaves_gpu_libraries_alone():
    code = """
import sys, torch, timm
before = set(sys.modules)
triton = 'triton' in before
import timm_snn
new = {name.split('.')[0] for name in set(sys.modules) - before}
assert not {'matplotlib', 'rich', 'tqdm'} & (set(sys.modules) - before), 'plotting library imported'
assert 'timm_snn.data' not in sys.modules, 'event data imported'
assert 'cupy' not in sys.modules and ('triton' in sys.modules) == triton, 'GPU library imported'
assert timm.is_model('msvit_10_768') and len(timm.list_models('msvit*')) == 7
print(sorted(new - set(sys.stdlib_module_names)))
"""
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['timm_snn']"


def test_public_names_are_few_and_exist():
    assert len(timm_snn.__all__) <= 15  # twelve to build with, two verbs for a finished model, and list_pretrained
    assert all(hasattr(timm_snn, name) for name in timm_snn.__all__)


def test_time_is_merged_with_the_batch_in_one_layer_only():
    """And in the ops of batch norm, whose statistics are over both, and of units of whole numbers."""
    merging = {
        file.name if file.name != 'fixed.py' else f'{file.parent.name}/fixed.py'
        for file in PACKAGE.rglob('*.py')
        if re.search(r'flatten\(0, ?1\)', file.read_text())
    }
    assert merging <= {'temporal.py', 'bn_lif.py', 'inductor.py', 'ops/fixed.py'}


def test_no_private_module_of_timm_is_imported():
    for file in PACKAGE.rglob('*.py'):
        assert not re.search(r'(from|import) timm[\w.]*\._', file.read_text()), file
