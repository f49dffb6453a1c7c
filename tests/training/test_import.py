"""timm_snn.training is there for scripts: `import timm_snn` does without it, and says what it needs."""

import subprocess
import sys

import timm_snn  # noqa: F401  what is measured against


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)


def test_importing_the_package_leaves_it_alone():
    code = "import sys, timm_snn; print({'accelerate', 'sklearn', 'timm_snn.training'} & set(sys.modules))"
    assert python(code).stdout.strip() == 'set()'


def test_a_missing_extra_is_told_with_what_to_install():
    result = python("import sys; sys.modules['accelerate'] = None; import timm_snn.training")
    line = result.stderr.strip().splitlines()[-1]
    assert line == "ModuleNotFoundError: timm_snn.training needs accelerate: pip install 'timm-snn[train]'"
