"""Events in HDF5, read by h5py: Metavision's files, DSEC's, and others whose columns have names.

h5py is given the file itself, and what it says of a damaged one becomes an EventFileError. It does not say it of all:
the HDF5 library may crash, as it did at one of some thousand damaged files.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .columns import NAMES, ORDERS, Converter, fitting_orders, named_columns
from .prophesee import TO_CSV
from .recording import EventFileError, Events, Recording, library

__all__ = ['hdf5']

DEPTH = 4  # of groups that are looked into
ECF = 0x8ECF  # the number of Metavision's filter
SAMPLE = 4096  # events that show in which order columns without names may be


class Table(NamedTuple):
    name: str
    datasets: list[Any]  # of t, x, y and p, or the one that holds all
    fields: list[str] | None = None  # of t, x, y and p in the one
    unit: str | None = None

    def take(self, start: int, stop: int, order: str | None) -> list[np.ndarray]:
        if len(self.datasets) == 4:
            return [dataset[start:stop] for dataset in self.datasets]
        rows = self.datasets[0][start:stop]
        if self.fields is not None:
            return [rows[field] for field in self.fields]
        return [rows[:, (order or 'txyp').index(name)] for name in NAMES]


def hdf5(recording: Recording, chunk: int) -> Iterator[Events]:
    """A group with datasets t, x, y and p, or a dataset with such fields; `stream` names one where there are several.

    Metavision has the fields in /CD/events, DSEC the datasets in /events, to whose t it adds /t_offset. A dataset of
    shape [N, 4] whose name says events is read in `order`.
    """
    h5py = library('h5py', 'HDF5')
    options = recording.options
    with recording.sound('HDF5 file'):
        file = h5py.File(recording.file.name, 'r')
    with file:
        with recording.sound('HDF5 file'):
            table = _choose(recording, list(_tables(h5py, file, DEPTH)))
            length = _check(h5py, recording, table)
            recording.count, recording.sensor_size = length, _sensor_size(file)
            offset = int(file['t_offset'][()]) if 't_offset' in file else 0
            sample = table.take(0, min(SAMPLE, length), options.order)
        convert = Converter(options.time_unit or table.unit)
        if wrong := convert.check([column.dtype for column in sample]):
            raise _error(recording, table, wrong)
        if len(table.datasets) == 1 and table.fields is None and options.order is None:
            likely = ' or '.join(f'order={order!r}' for order in fitting_orders(sample) or ORDERS)
            raise _error(recording, table, f'expected columns with names, got none: say {likely}')
        for start in range(0, length, chunk):
            with recording.sound('HDF5 file'):
                columns = table.take(start, min(start + chunk, length), options.order)
            if wrong_value := convert.wrong(columns):
                _, i, text = wrong_value
                raise _error(recording, table, f'event {start + i}: {text}')
            events = convert.events(columns)
            yield Events(events.t + offset, events.x, events.y, events.p) if offset else events


def _tables(h5py: Any, group: Any, depth: int) -> Iterator[Table]:
    """All that may be events in a group and below it, by links that do not leave the file."""
    names = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
    members = {name: group[name] for name in names}
    datasets = {name: member for name, member in members.items() if isinstance(member, h5py.Dataset)}
    if found := named_columns(name for name, dataset in datasets.items() if dataset.ndim == 1):
        yield Table(group.name, [datasets[found[0][column]] for column in NAMES], None, found[1])
    for name, dataset in datasets.items():
        if dataset.ndim == 1 and dataset.dtype.fields and (found := named_columns(dataset.dtype.fields)):
            yield Table(dataset.name, [dataset], [found[0][column] for column in NAMES], found[1])
        elif dataset.ndim == 2 and dataset.shape[1] == 4 and 'event' in name.lower():
            yield Table(dataset.name, [dataset])
    for member in members.values():
        if depth and isinstance(member, h5py.Group):
            yield from _tables(h5py, member, depth - 1)


def _choose(recording: Recording, tables: list[Table]) -> Table:
    names = [table.name for table in tables]
    wanted = recording.options.stream
    if wanted is not None:
        tables = [table for table in tables if table.name.strip('/') == wanted.strip('/')]
    if len(tables) == 1:
        return tables[0]
    shown = ', '.join(names[:10]) or 'nothing like it'
    if wanted is not None:
        raise recording.error(0, f'expected events in stream={wanted!r}, got them in {shown}')
    hint = f': say stream={names[0]!r}' if names else ''
    raise recording.error(0, f'expected one group or dataset with columns t, x, y and p, got {shown}{hint}')


def _check(h5py: Any, recording: Recording, table: Table) -> int:
    """The length, if all columns have it and can be unpacked."""
    lengths = [dataset.shape[0] for dataset in table.datasets]
    if len(set(lengths)) > 1:
        raise _error(recording, table, f'expected t, x, y, p of one length, got {lengths}')
    for dataset in table.datasets:
        if dataset.is_virtual or dataset.external:
            raise _error(recording, table, 'expected the data in this file, got a link to others')
        settings = dataset.id.get_create_plist()
        for i in range(settings.get_nfilters()):
            _check_filter(h5py, recording, settings.get_filter(i)[0])
    size = sum(dataset.nbytes for dataset in table.datasets)
    if size > max(recording.size, recording.options.max_unpacked):
        raise recording.too_large(size)
    return lengths[0]


def _check_filter(h5py: Any, recording: Recording, number: int) -> None:
    if h5py.h5z.filter_avail(number):
        return
    if number == ECF:
        raise recording.other(
            "a file that Metavision's codec ECF compressed, whose plug-in (github.com/prophesee-ai/hdf5_ecf) is in no "
            'folder of HDF5_PLUGIN_PATH',
            *TO_CSV,
        )
    library('hdf5plugin', 'this HDF5 file, which Blosc or another filter compressed,')  # importing it adds its filters
    if not h5py.h5z.filter_avail(number):
        raise recording.error(0, f'expected a filter that hdf5plugin has, got number {number}')


def _sensor_size(file: Any) -> tuple[int, int] | None:
    """Of Metavision's `geometry`, a text 1280x720, or of `sensor_resolution`, height and width."""
    if size := re.fullmatch(r'(\d{1,5})x(\d{1,5})', str(file.attrs.get('geometry', ''))):
        return int(size[2]), int(size[1])
    resolution = np.asarray(file.attrs.get('sensor_resolution', ()))
    return (int(resolution[0]), int(resolution[1])) if resolution.shape == (2,) else None


def _error(recording: Recording, table: Table, text: str) -> EventFileError:
    return recording.error(0, f'{table.name}: {text}')
