"""What pyproject.toml cannot say: the wheel has the recipes, and an install from the source builds the C++ too."""

import os
import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
RECIPES = ('*.py', 'configs/**/*.yaml', 'accelerate_configs/*.yaml')


class BuildPackage(build_py):
    """The Python files with the recipes, and the C++ for the user's cache, where its first use would put it.

    The wheel has no C++ built. A machine where that fails gets the package all the same: it works without, more slowly.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_recipes()
        if os.environ.get('TIMM_SNN_BACKEND') == 'torch':
            return
        native = runpy.run_path(str(HERE / 'timm_snn' / 'ops' / 'native' / 'build.py'))
        try:
            native['build_ahead']()
        except native['CannotBuild'] as error:
            print('the C++ kernels are not built:', ' '.join(str(error).split()), file=sys.stderr)

    def copy_recipes(self) -> None:
        """Into the package, where `timm_snn.recipes` finds them; an editable installation has them beside it."""
        for file in (file for pattern in RECIPES for file in (HERE / 'recipes').glob(pattern)):
            copy = Path(self.build_lib) / 'timm_snn' / '_recipes' / file.relative_to(HERE / 'recipes')
            copy.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(file), str(copy))
        self.copy_file(str(HERE / 'CITATION.cff'), str(Path(self.build_lib) / 'timm_snn'))  # for model cards


setup(cmdclass={'build_py': BuildPackage})
