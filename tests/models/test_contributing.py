"""The promise to whoever adds a family: it is one file, and nothing else in the tree knows of it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_family_in_one_file_outside_the_package_gets_the_checks_of_every_family():
    checks = ['tests/models/test_families.py', 'tests/models/test_shapes.py']
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'tests.models.toyformer']
    result = subprocess.run(
        [*command, *checks, '-k', 'toyformer'], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert int(re.search(r'(\d+) passed', result.stdout)[1]) == 18


def test_nothing_else_in_the_tree_knows_of_it():
    files = [
        file for folder in ('timm_snn', 'recipes', 'hub', 'docs', 'tests') for file in (ROOT / folder).rglob('*.*')
    ]
    readable = [file for file in files if file.suffix in ('.py', '.md', '.csv', '.yaml', '.json')]
    knowing = {file.name for file in readable if 'toyformer' in file.read_text(encoding='utf-8').lower()}
    assert knowing == {'toyformer.py', 'test_contributing.py'}
