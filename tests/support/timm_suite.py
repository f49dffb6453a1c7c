"""Run timm's own tests/test_models.py, unmodified, on our models.

    python tests/support/timm_suite.py msvit_4_96 [MODEL ...] [-- pytest arguments]

The tests come from the source distribution of the installed timm version, which pip fetches once into .cache/. They
are parametrised on what timm.list_models returns while they are collected; here that is the models named. The exit
status is pytest's.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import timm

import timm_snn  # noqa: F401  registers the models

CACHE = Path(__file__).parents[2] / '.cache'


def fetch_sdist() -> Path:
    """The unpacked source distribution of the installed timm. Raises subprocess.CalledProcessError if pip cannot."""
    folder = CACHE / f'timm-{timm.__version__}'
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as download:
            pip = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', 'timm', '-d', download]
            subprocess.run([*pip, f'timm=={timm.__version__}'], check=True, capture_output=True, text=True)
            (archive,) = Path(download).glob('*.tar.gz')
            shutil.unpack_archive(archive, download)
            (Path(download) / folder.name).rename(folder)
    return folder


def main() -> int:
    models, _, arguments = ' '.join(sys.argv[1:]).partition(' -- ')
    names = models.split()
    unknown = set(names) - set(timm.list_models())
    if not names or unknown:
        raise SystemExit(f'name models registered with timm; unknown: {sorted(unknown)}')
    folder = fetch_sdist()
    list_models = timm.list_models

    def only_ours(filter='', **kwargs):  # `filter` selects timm's families of unusual output, ours are not among them
        kwargs.pop('module', None)  # timm's own files
        return [name for name in list_models(**kwargs) if name.split('.')[0] in names] if not filter else []

    timm.list_models = only_ours
    timm.list_pretrained = lambda *args, **kwargs: []
    return pytest.main(
        [
            str(folder / 'tests' / 'test_models.py'),
            *('-c', str(folder / 'pyproject.toml'), '--rootdir', str(folder), '--import-mode=importlib'),
            *('-p', 'no:cacheprovider', '-q', '--durations=0', '-k', ' or '.join(names)),
            *arguments.split(),
        ]
    )


if __name__ == '__main__':
    sys.exit(main())
