"""The notebooks in docs/ are stored as they run, and run from top to bottom."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip('nbformat')

FOLDER = Path(__file__).parents[1] / 'docs' / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
EXTRAS = {'matplotlib', 'numpy', 'timm', 'timm_snn', 'torch'}  # what `timm-snn[train]` brings, of which they need this

each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get('outputs', [])]


def check_outputs(notebook: Any) -> None:
    """All cells of code ran in order, and none of them failed or warned."""
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in outputs_of(notebook):
        assert output.output_type != 'error' and output.get('name') != 'stderr', output


@each_notebook
def test_a_notebook_is_stored_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert any('image/png' in output.get('data', {}) for output in outputs_of(notebook))


@each_notebook
def test_a_notebook_says_nothing_of_the_machine_that_ran_it(path):
    """`make notebooks` leaves it so."""
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == 'python3' and notebook.metadata.language_info == {'name': 'python'}
    assert all(part.get('metadata', {}) == {} for part in [*notebook.cells, *outputs_of(notebook)])
    shown = [text for output in outputs_of(notebook) for text in (output.get('text', ''), str(output.get('data', '')))]
    assert not [text for text in shown if re.search(r'/(home|root|tmp|usr|Users)/|site-packages| at 0x', text)]


@each_notebook
def test_a_notebook_imports_what_one_extra_brings(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code']
    tree = ast.parse('\n'.join(re.sub(r'(?m)^%.*', '', source) for source in cells))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or '' for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition('.')[0] for name in imported} - sys.stdlib_module_names <= EXTRAS


@pytest.mark.parametrize('path', [*NOTEBOOKS, FOLDER / 'README.md'], ids=lambda path: path.name)
def test_links_of_notebooks_lead_somewhere(path):
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.ipynb':
        text = '\n'.join(cell.source for cell in nbformat.reads(text, as_version=4).cells)
    links = re.findall(r'\]\(([^)#]+)', text)
    assert links and [link for link in links if not link.startswith('https://') and not (FOLDER / link).exists()] == []


def test_every_notebook_is_listed_and_all_are_small():
    listed = re.findall(r'\]\((\w+\.ipynb)\)', (FOLDER / 'README.md').read_text())
    assert sorted(listed) == [path.name for path in NOTEBOOKS] and len(listed) == 3
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_500_000


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_and_shows_what_is_stored(path):
    """As many texts and pictures from every cell; numbers may differ on another machine."""
    pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    executed = runpy.run_path(str(FOLDER / 'execute.py'))['execute'](path)
    check_outputs(executed)
    stored = nbformat.read(path, as_version=4)
    for cell, expected in zip(executed.cells, stored.cells, strict=True):
        kinds = [[sorted(output.get('data', {})) for output in each.get('outputs', [])] for each in (cell, expected)]
        assert kinds[0] == kinds[1], cell.source


@each_notebook
def test_a_notebook_is_a_page_of_the_site(path):
    """All text, all code and all that the cells have shown, in order."""
    pytest.importorskip('mkdocs')
    notebook = json.loads(path.read_text(encoding='utf-8'))
    page, pictures = runpy.run_path(str(FOLDER / 'site_pages.py'))['as_page'](notebook, path.stem)
    place = 0
    for cell in notebook['cells']:
        place = page.index(''.join(cell['source']), place)
    shown = [f'{path.stem}_{number}.png' for number in range(len(pictures))]
    assert re.findall(r'!\[[^]]+\]\(([^)]+)\)', page) == shown
    assert all(picture.startswith(b'\x89PNG') for picture in pictures)
    assert len(re.findall('(?m)^```', page)) % 2 == 0
