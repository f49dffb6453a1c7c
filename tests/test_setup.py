"""An install from the source builds the C++ for the user, if it can, and works if it cannot."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from timm_snn.ops.native import build

pytest.importorskip('setuptools')
ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(build.why_not_here() is not None, reason=str(build.why_not_here()))


@pytest.fixture
def checkout(tmp_path):
    """What a build needs of this project, with sources that build at once, in a folder whose name has a space."""
    checkout = tmp_path / 'a checkout'
    native = checkout / 'timm_snn' / 'ops' / 'native'
    native.mkdir(parents=True)
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'CITATION.cff'):
        shutil.copy(ROOT / name, checkout)
    shutil.copy(ROOT / 'timm_snn' / 'version.py', checkout / 'timm_snn')
    shutil.copy(build.__file__, native)
    shutil.copytree(ROOT / 'recipes', checkout / 'recipes')
    for folder in (native, *native.parents[:2]):
        (folder / '__init__.py').write_text('')
    for name in build.LIBRARIES:
        (native / name).write_text('extern "C" int answer() { return 42; }\n')
    return checkout


def build_wheel(checkout, kind='wheel', **environment) -> tuple[Path, str]:
    """What pip calls in `pip install .`, or with 'editable' in `pip install -e .`; and what that prints on stderr."""
    done = subprocess.run(
        [sys.executable, '-c', f'from setuptools import build_meta; build_meta.build_{kind}("dist")'],
        cwd=checkout,
        env={**os.environ, 'XDG_CACHE_HOME': str(checkout / 'the cache'), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = (checkout / 'dist').glob('*.whl')
    return wheel, done.stderr


def what_a_wheel_has_of_the_recipes() -> set[str]:
    """The scripts and the configs, but not the notes for those who have a clone."""
    files = {str(file.relative_to(ROOT / 'recipes')) for file in (ROOT / 'recipes').rglob('*.*')}
    return {file for file in files if file.endswith(('.yaml', '.py'))}


def built(checkout) -> set[str]:
    cache = checkout / 'the cache' / 'timm_snn'
    return {path.name.split('-')[0] for path in cache.glob('*.so')}


@needs_compiler
@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_an_install_builds_into_the_cache_of_the_user_and_not_into_the_wheel(kind, checkout):
    wheel, _ = build_wheel(checkout, kind)
    assert built(checkout) == {Path(name).stem for name in build.LIBRARIES}
    assert wheel.name.endswith('-py3-none-any.whl')
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert not [name for name in names if name.endswith(('.so', 'setup.py'))]
    inside = {name.removeprefix('timm_snn/_recipes/') for name in names if name.startswith('timm_snn/_recipes/')}
    assert inside == (set() if kind == 'editable' else what_a_wheel_has_of_the_recipes())


@pytest.mark.parametrize(
    ('environment', 'said'),
    [
        ({'CXX': 'a-compiler-that-is-not-here'}, 1),
        ({'XDG_CACHE_HOME': '/proc/nowhere'}, 1),
        ({'TIMM_SNN_BACKEND': 'torch'}, 0),
    ],
)
def test_an_install_works_where_nothing_can_be_built_and_says_so_in_a_line(environment, said, checkout):
    _, stderr = build_wheel(checkout, **environment)
    lines = [line for line in stderr.splitlines() if 'C++ kernels are not built' in line]
    assert len(lines) == said and not built(checkout)
