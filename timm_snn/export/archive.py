"""Metadata in torch's .pt2 archives, which are zip files; what else is in them is not looked at."""

import json
import zipfile
from pathlib import Path
from typing import Any

from ..files import check_regular_file, printable

__all__ = ['METADATA', 'add_metadata', 'read_metadata', 'text_of']

METADATA = 'timm_snn.json'


def text_of(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, indent=2)


def add_metadata(file: Path, metadata: dict[str, Any]) -> None:
    """Into an archive that has none, where torch.export.save puts its extra files."""
    with zipfile.ZipFile(file, 'a') as archive:
        root = archive.namelist()[0].partition('/')[0]
        archive.writestr(f'{root}/extra/{METADATA}', text_of(metadata))


def read_metadata(file: Path) -> dict[str, Any]:
    """Raises: ValueError for a file that is no such archive, or that `timm_snn.export` has not written."""
    check_regular_file(file)
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith(f'/extra/{METADATA}')]
            return dict(json.loads(archive.read(names[0])))
    except (zipfile.BadZipFile, IndexError, ValueError) as error:
        raise ValueError(
            f'{printable(str(file))} has no metadata of timm_snn: expected a .pt2 file that timm_snn.export has written'
        ) from error
