"""Run the notebooks of this folder, or those that are named, and store them with what they show: `make notebooks`.

    python docs/notebooks/execute.py docs/notebooks/see_it_think.ipynb

Nothing of the machine is stored: no times, no version of Python, no metadata of an editor.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

# tqdm.auto, which huggingface_hub imports, warns where ipywidgets is missing.
ENVIRONMENT = {**os.environ, 'PYTHONWARNINGS': 'ignore:IProgress not found'}
METADATA = {
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
}


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook as it is after all of its cells have run in order, in an empty folder.

    Raises: nbclient.exceptions.CellExecutionError with the traceback of the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name='python3',
            record_timing=False,
            coalesce_streams=True,
            resources={'metadata': {'path': folder}},
            extra_arguments=['--log-level=ERROR'],  # the kernel warns of its own port
        )
        client.execute(env=ENVIRONMENT)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get('outputs', []):
            if 'metadata' in output:
                output.metadata = nbformat.from_dict({})
    return notebook


def main() -> None:
    named = [Path(name) for name in sys.argv[1:]]
    for path in named or sorted(Path(__file__).parent.glob('*.ipynb')):
        nbformat.write(execute(path), path)
        print(f'{path}: {path.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
