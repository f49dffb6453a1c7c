"""Columns of a Hugging Face data set, looked at from top to bottom before a run begins."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.rows import import_datasets
from ..files import printable

__all__ = ['check_column_names', 'leave_out_unusable']


def check_column_names(name: str, split: str, folder: str | None, keys: Sequence[str]) -> None:
    """Raises: ValueError with the columns that there are, unless each of the keys is one."""
    columns = import_datasets().load_dataset(name, split=split, cache_dir=folder).column_names
    for key in keys:
        if key not in columns:
            raise ValueError(
                f'it has no column {key!r} but {printable(", ".join(columns), 500)}: --input-key and --target-key name '
                'them'
            )


def leave_out_unusable(reader: Any) -> str | None:
    """Takes rows without a picture or without a label out of timm's reader, and says how many; None if all have both.

    A label may be missing, or -1 as the library marks what has none.
    Raises: ValueError if labels are not whole numbers, or none is left.
    """
    table, image_key, label_key = reader.dataset, reader.image_key, reader.label_key
    labels = _column(table, label_key)
    if labels.type.to_pandas_dtype() is np.bool_:
        raise ValueError(f'column {label_key!r} holds true and false: cast it to a ClassLabel')
    if not str(labels.type).startswith(('int', 'uint')):
        example = next((value for value in labels.to_pylist()[:100] if value is not None), None)
        raise ValueError(
            f'column {label_key!r} holds {labels.type}, such as {printable(repr(example), 60)}, and labels must be '
            "whole numbers: --target-key names another column, or datasets' class_encode_column numbers this one"
        )
    numbers = np.asarray(labels.fill_null(-1))
    pictures = _column(table, image_key).flatten()  # of bytes and path
    has_picture = np.asarray(pictures[0].is_valid()) | np.asarray(pictures[1].is_valid())
    usable = (numbers != -1) & has_picture
    if usable.all():
        return None
    if not usable.any():
        raise ValueError(f'no row has a picture in {image_key!r} and a label in {label_key!r}')
    reader.dataset = table.select(np.flatnonzero(usable))
    reader.num_samples = len(reader.dataset)
    counts = {'without a label': (numbers == -1).sum(), 'without a picture': (~has_picture).sum()}
    return ', '.join(f'{count} {what}' for what, count in counts.items() if count)


def _column(table: Any, name: str) -> Any:
    """As one array of pyarrow."""
    column = table.select_columns([name]).with_format('arrow')[:][name]
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
