"""The scripts of the folder `recipes/` as modules: `timm_snn.recipes.train` is `recipes/train.py`.

In a clone they are beside this package, and a wheel has a copy inside. Modules that can be imported by name go to
processes that are spawned, which a file that was run by its path does not.
"""

from pathlib import Path

__all__ = ['CONFIGS', 'FOLDER', 'configs']

_IN_A_WHEEL = Path(__file__).with_name('_recipes')
FOLDER = _IN_A_WHEEL if _IN_A_WHEEL.is_dir() else Path(__file__).parents[1] / 'recipes'
CONFIGS = FOLDER / 'configs'
__path__ = [str(FOLDER)]


def configs() -> list[str]:
    """The configs that come with the recipes, as 'msvit/digits'."""
    return sorted(str(path.relative_to(CONFIGS).with_suffix('').as_posix()) for path in CONFIGS.rglob('*.yaml'))
