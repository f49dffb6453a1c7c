"""Imports go one way: ops -> layers -> models, what stands on them beside each other, and nowhere in a circle.

All imports count, those in functions and under TYPE_CHECKING too: they show which file knows which. Only a module's
`__getattr__` may look up, for the old name of what has moved up.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import timm_snn

PACKAGE = Path(timm_snn.__file__).parent

# What the files of a folder import beside each other. All may import the single files at the top, such as version.py.
BELOW = {
    'ops': set(),
    'layers': {'ops'},
    'models': {'ops', 'layers'},
    'profiling': {'ops', 'layers'},
    'dense': {'ops', 'layers', 'models'},
    'data': set(),
    'testing': {'ops', 'layers', 'models'},
    'export': {'ops', 'layers', 'models'},
    'hub': {'ops', 'layers', 'models', 'profiling', 'data'},
    'training': {'ops', 'layers', 'models', 'dense', 'export', 'profiling', 'data', 'timm_snn'},
    'demo': {'models', 'profiling', 'data', 'training', 'timm_snn'},
}

Graph = dict[str, set[str]]


def imports_below(package: Path) -> Graph:
    """For every file of the package, by its dotted name, the files of the package that it imports."""
    files = {_name_of(file, package): file for file in package.rglob('*.py')}
    return {module: set(_imported(module, file, files)) - {module} for module, file in files.items()}


def _name_of(file: Path, package: Path) -> str:
    return '.'.join(file.relative_to(package.parent).with_suffix('').parts).removesuffix('.__init__')


def _imported(module: str, file: Path, files: dict[str, Path]) -> Iterator[str]:
    parents = module.split('.') if file.stem == '__init__' else module.split('.')[:-1]
    for statement in ast.parse(file.read_text(encoding='utf-8')).body:
        if isinstance(statement, ast.FunctionDef) and statement.name == '__getattr__':
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in files)
            elif isinstance(node, ast.ImportFrom):
                start = parents[: len(parents) + 1 - node.level] if node.level else []
                origin = '.'.join([*start, *filter(None, [node.module])])
                for alias in node.names:  # a file of this name, or something in the file `origin`
                    yield from [name for name in (f'{origin}.{alias.name}', origin) if name in files][:1]


def circles(graph: Graph) -> list[list[str]]:
    """Files that import each other, directly or through others, one list per circle."""
    reached: Graph = {}
    for module in graph:
        seen, waiting = set(), [module]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[module] = seen
    groups = [sorted(other for other in seen if module in reached[other]) for module, seen in reached.items()]
    return sorted({tuple(group): group for group in groups if group}.values())


def _folder_of(module: str, graph: Graph) -> str:
    """'timm_snn.ops.lif' -> 'ops'; '' for single files at the top, 'timm_snn' for the package, which imports all."""
    parts = module.split('.')
    is_folder = len(parts) > 2 or any(other.startswith(f'{module}.') for other in graph)
    return parts[min(1, len(parts) - 1)] if is_folder else ''


def test_no_files_import_each_other():
    assert circles(imports_below(PACKAGE)) == []


def test_folders_import_only_what_is_below():
    graph = imports_below(PACKAGE)
    upward = [
        f'{module} imports {other}'
        for module, imported in graph.items()
        for other in imported
        if (folder := _folder_of(module, graph)) != 'timm_snn'
        and _folder_of(other, graph) not in {folder, ''} | BELOW.get(folder, set())
    ]
    assert upward == []


def test_an_import_counts_wherever_it_is_written(tmp_path):
    sources = {
        '__init__': 'from .a import x',
        'a': 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .inside import y',
        'inside/__init__': '',
        'inside/y': 'def late():\n    from .. import b',
        'b': 'import pkg.a',
        'c': 'from . import old\ndef __getattr__(name):\n    from . import d',
        'd': 'from .c import x',
        'old': '',
    }
    for name, source in sources.items():
        file = tmp_path / 'pkg' / f'{name}.py'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    graph = imports_below(tmp_path / 'pkg')
    assert circles(graph) == [['pkg.a', 'pkg.b', 'pkg.inside.y']]
    assert graph['pkg.c'] == {'pkg.old'} and graph['pkg'] == {'pkg.a'}
