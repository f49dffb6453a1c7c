"""`timm-snn new family|neuron NAME`: a package of one's own that installs, registers and tests itself."""

import keyword
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from string import Template

import timm

from .version import __version__

__all__ = ['main', 'write_package']

USAGE = """usage: timm-snn new family NAME [FOLDER]
       timm-snn new neuron NAME [FOLDER]

Writes FOLDER (by default NAME), a package that pip installs, with the code to start from, a README, and tests that
pass: all that the families and neurons of timm_snn are tested for. NAME is a Python name, such as my_former."""

TEMPLATES = Path(__file__).parent / 'templates'


def main(argv: Sequence[str]) -> None:
    if not argv or {'-h', '--help'}.intersection(argv):
        print(USAGE)
        return
    kinds = sorted(path.name for path in TEMPLATES.iterdir() if path.name != 'package')
    if argv[0] not in kinds or not 2 <= len(argv) <= 3:
        raise SystemExit(f'error: expected {" or ".join(kinds)}, a name and perhaps a folder, got {" ".join(argv)!r}')
    kind, name, *folder = argv
    try:
        files = write_package(kind, name, Path(folder[0] if folder else name))
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from error
    print('\n'.join(map(str, files)))
    root = files[0].parent
    print(f'\nnow: {sys.executable} -m pip install -e {root} && {sys.executable} -m pytest {root}')


def write_package(kind: str, name: str, root: Path) -> list[Path]:
    """Write the package `name` with a 'family' or a 'neuron' into a new folder; returns its files.

    Raises: ValueError for what is no name of a package, or is one of something else; FileExistsError for a folder with
    anything in it.
    """
    if not re.fullmatch('[a-z][a-z0-9_]*', name) or keyword.iskeyword(name) or name in sys.stdlib_module_names:
        raise ValueError(f'expected a name of lower-case letters, digits and _, as my_{kind}, got {name!r}')
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f'{root} is there already: name an empty folder, or one that is not there yet')
    if find_spec(name) is not None:
        raise ValueError(f'{name!r} is the name of a library that is installed: give your package one of its own')
    neurons = import_module('timm_snn.layers').neurons  # whose names are looked up when the command runs, as in cli.py
    if name in neurons.names() or timm.is_model(f'{name}_3_32'):
        raise ValueError(f'{name!r} is registered already: give your {kind} a name of its own')
    words = {
        'name': name,
        'dashed': name.replace('_', '-'),
        'class_name': ''.join(word.capitalize() for word in name.split('_')),
        'version': __version__,
    }
    files = []
    for template in sorted([*(TEMPLATES / 'package').rglob('*.txt'), *(TEMPLATES / kind).rglob('*.txt')]):
        place = template.relative_to(TEMPLATES).parts[1:]
        file = root.joinpath(*place[:-1], Template(place[-1].removesuffix('.txt')).substitute(words))
        file = Path(*(name if part == 'NAME' else part for part in file.parts))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(template.read_text(encoding='utf-8')).substitute(words), encoding='utf-8')
        files.append(file)
    return sorted(files, key=lambda file: (len(file.parts), file))
