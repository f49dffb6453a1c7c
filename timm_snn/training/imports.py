"""Modules of a user's own: `--import`, by which families and neurons register themselves, and that of `--task`."""

import importlib
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from .errors import UserError

__all__ = ['import_own']


def import_own(name: str, option: str = '--import') -> ModuleType:
    """Import a module by name, also from the working directory, or a file NAME.py, as the module NAME.

    Raises: UserError, about this option, if there is none of this name; what its code raises keeps its traceback.
    """
    if name.endswith('.py'):
        return _import_file(Path(name), option)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # after what is installed, so that no folder here hides a library
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f'{error.name}.'):
            raise  # what that module itself imports
        raise UserError(
            f'argument {option}: there is no module {error.name!r}: install it, run where its folder is, or name a '
            'file that ends in .py'
        ) from error


def _import_file(path: Path, option: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f'argument {option}: there is no file {path}')
    known = sys.modules.get(path.stem)
    if known is not None:
        if getattr(known, '__file__', None) and Path(str(known.__file__)).resolve() == path.resolve():
            return known
        raise UserError(f'argument {option}: a module {path.stem!r} is there already: give {path} another name')
    spec = spec_from_file_location(path.stem, path.resolve())
    assert spec and spec.loader  # which a suffix of .py has
    module = sys.modules[path.stem] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
