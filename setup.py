"""The one thing that pyproject.toml cannot say: who installs the package from its source gets its C++ built as well."""

import os
import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPackage(build_py):
    """The Python files, and the C++ for the user's cache, where its first use would put it; the wheel has none of it.

    A machine where that fails gets the package all the same: it works without, more slowly.
    """

    def run(self) -> None:
        super().run()
        if os.environ.get('TIMM_SNN_BACKEND') == 'torch':
            return
        native = runpy.run_path(str(Path(__file__).parent / 'timm_snn' / 'ops' / 'native' / 'build.py'))
        try:
            native['build_ahead']()
        except native['CannotBuild'] as error:
            print('the C++ kernels are not built:', ' '.join(str(error).split()), file=sys.stderr)


setup(cmdclass={'build_py': BuildPackage})
