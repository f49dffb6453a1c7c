"""The library of the scripts in recipes/ and hub/: options, models, data, losses, checkpoints, evaluation.

It needs the extra `train`, and `import timm_snn` does not import it. Import its modules by name, as in
`from timm_snn.training.models import open_model`.
"""

from importlib.util import find_spec

_NEEDED = ('accelerate', 'matplotlib', 'rich', 'sklearn', 'tqdm', 'yaml')

if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"timm_snn.training needs {', '.join(_missing)}: pip install 'timm-snn[train]'", name=_missing[0]
    )
