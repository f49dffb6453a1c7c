"""`--import`: modules of a user's own, which register families, neurons and losses by being imported."""

import importlib
import os
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from .errors import UserError

__all__ = ['import_own']


def import_own(name: str) -> None:
    """Import a module by name, also from the working directory, or a file NAME.py, as the module NAME.

    Raises: UserError if there is none of this name; whatever its code raises keeps its traceback.
    """
    if name.endswith('.py'):
        _import_file(Path(name))
        return
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # after what is installed, so that no folder here hides a library
    package = name.partition('.')[0]
    if find_spec(package) is None:
        raise UserError(
            f'argument --import: there is no module {package!r}: install it, run where its folder is, or name a file '
            'that ends in .py'
        )
    importlib.import_module(name)


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f'argument --import: there is no file {path}')
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, '__file__', None) and Path(str(known.__file__)).resolve() == path.resolve():
            return
        raise UserError(f'argument --import: a module {path.stem!r} is there already: give {path} another name')
    spec = spec_from_file_location(path.stem, path.resolve())
    assert spec and spec.loader  # which a suffix of .py has
    module = sys.modules[path.stem] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
