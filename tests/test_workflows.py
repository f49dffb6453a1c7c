"""What runs on GitHub is what the Makefile and pyproject.toml say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

import timm_snn

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / '.github'
PYPROJECT = (ROOT / 'pyproject.toml').read_text()
TARGETS = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def versions(text: str, operator: str) -> dict[str, Version]:
    return {name: Version(version) for name, version in re.findall(rf'\b(torch|timm){operator}([\d.]+)', text)}


TESTS = load(GITHUB / 'workflows' / 'tests.yml')
MATRIX = {row['name']: row for row in TESTS['jobs']['tests']['strategy']['matrix']['include']}


def test_the_oldest_versions_are_the_lower_bounds():
    oldest = MATRIX['oldest torch and timm']
    assert versions((ROOT / oldest['constraint']).read_text(), '==') == versions(PYPROJECT, '>=') != {}
    assert re.search(r'requires-python = ">=(.*)"', PYPROJECT)[1] == oldest['python']


def test_the_newest_versions_are_free():
    newest = MATRIX['newest torch and timm']
    assert newest['constraint'] == ''
    assert re.findall(r'Python :: (3\.\d+)', PYPROJECT)[-1] == newest['python']


@pytest.mark.parametrize(
    'path', [ROOT / '.ci' / 'run', *(GITHUB / 'workflows').glob('*.yml')], ids=lambda path: path.stem
)
def test_commands_are_targets_of_make(path):
    commands = re.findall(r'^(?:\s*- run: )?make (.*)', path.read_text(), re.MULTILINE)
    words = [word for command in commands for word in command.split() if '=' not in word]
    assert words and set(words) <= TARGETS


def test_a_release_is_named_after_the_version_of_the_package():
    (command, file) = re.search(r'VERSION := \$\(shell (sed .*) (\S+)\)', (ROOT / 'Makefile').read_text()).groups()
    assert f"__version__ = '{timm_snn.__version__}'\n" in (ROOT / file).read_text() and '__version__' in command


def test_continuous_integration_runs_what_github_does():
    assert 'make lint type docs test ' in (ROOT / '.ci' / 'run').read_text()
    runs = [step['run'] for job in TESTS['jobs'].values() for step in job['steps'] if 'run' in step]
    assert runs == ['make lint', 'make type', 'make test', 'make build', 'make test-package']


@pytest.mark.parametrize('path', sorted((GITHUB / 'ISSUE_TEMPLATE').glob('*.yml')), ids=lambda path: path.stem)
def test_issue_forms_are_complete(path):
    form = load(path)
    if path.stem == 'config':
        assert form['blank_issues_enabled'] is False
        return
    assert form['name'] and form['description'] and all(field['attributes']['label'] for field in form['body'])
    assert path.stem != 'bug' or 'backend_report()' in path.read_text()


def test_the_wheel_has_every_file_that_is_not_python():
    patterns = re.search(r'\[tool\.setuptools\.package-data\]\ntimm_snn = \[(.*)\]', PYPROJECT)[1].split(', ')
    package = ROOT / 'timm_snn'
    globs = [package.glob(pattern.strip('"')) for pattern in patterns]
    packed = {path.relative_to(package) for found in globs for path in found}
    needed = {path.relative_to(package) for path in package.rglob('*') if path.is_file()}
    assert {path for path in needed - packed if path.suffix not in ('.py', '.pyc', '.md')} == set()
