"""timm_snn.training is there for scripts: `import timm_snn` does without it, and says what it needs."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import timm_snn.training

PACKAGE = Path(timm_snn.__file__).parent


def test_importing_the_package_leaves_it_alone():
    code = "import sys, timm_snn; print({'accelerate', 'sklearn', 'timm_snn.training'} & set(sys.modules))"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'set()'


def test_a_missing_extra_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.reload(timm_snn.training)
    assert str(error.value) == "timm_snn.training needs accelerate: pip install 'timm-snn[train]'"


def test_no_other_shelf_imports_it():
    for file in PACKAGE.rglob('*.py'):
        imports = re.search(r'(from|import) (\.+|timm_snn\.)training', file.read_text())
        above = {PACKAGE / 'training', PACKAGE / 'demo'}  # the page stands on it, as a script does
        assert not imports or above & set(file.parents), file


def test_command_lines_are_read_in_one_file_and_nothing_is_printed():
    files = {file.relative_to(PACKAGE).as_posix(): file.read_text() for file in (PACKAGE / 'training').glob('*.py')}
    assert [name for name, text in files.items() if 'argparse' in text] == ['training/options.py']
    library = {name: text for name, text in files.items() if '\n@script\n' not in text}  # and no command
    assert not [name for name, text in library.items() if re.search(r'(?<!\.)\bprint\(', text)]
