"""The data set card, README.md of a data set's repository on the Hub, of rows or folders that our tools made or read.

    python hub/dataset_card.py rows/ --repo USER/NAME --license cc-by-4.0 --output rows/README.md
    python hub/dataset_card.py DATA --license mit --source 'https://...'

The folder has the parquet files of `timm_snn.data.write_rows`, or SPLIT/CLASS/ with recordings of an event camera, or
with pictures. Samples, classes, shapes, sensor and bins are read from the files; the licence is for you to state. What
nobody can read off files is left as a line that begins with TODO.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet
from card import give_card
from datasets import Features
from huggingface_hub import DatasetCardData
from timm.utils.misc import natural_key

from timm_snn.data import recording_info
from timm_snn.data.event_folder import find_recordings
from timm_snn.files import printable
from timm_snn.folders import Found
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.options import ArgumentParser
from timm_snn.training.pictures import find_pictures

SIZES = ((10**3, 'n<1K'), (10**4, '1K<n<10K'), (10**5, '10K<n<100K'), (10**6, '100K<n<1M'), (10**7, '1M<n<10M'))


@dataclass
class Facts:
    """What files say of a data set."""

    kind: str  # 'frames', 'recordings' or 'pictures'
    counts: dict[str, int]  # samples by split
    classes: list[str]
    details: list[str]  # 'Name: value'


def recordings_in(folder: Path) -> Found:
    return find_recordings([folder], {})


def read_facts(folder: Path) -> Facts:
    """Raises: UserError for a folder that is none of the three."""
    with one_line_errors(f'read the data set {folder}'):
        if files := sorted(folder.glob('*.parquet')):
            return _of_rows(files)
        splits = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith('.'))
        for kind, find in (('recordings', recordings_in), ('pictures', find_pictures)):
            found = {split.name: find(split).files for split in splits}
            if any(found.values()):
                return _of_files(folder, kind, {split: files for split, files in found.items() if files})
    raise UserError(
        f'{folder} is no data set: expected the parquet files of timm_snn.data.write_rows, or SPLIT/CLASS/ with '
        'recordings or pictures'
    )


def _of_rows(files: Sequence[Path]) -> Facts:
    counts: Counter[str] = Counter()
    for file in files:
        counts[re.sub(r'-\d+-of-\d+$', '', file.stem)] += parquet.read_metadata(file).num_rows
    features = Features.from_arrow_schema(parquet.read_schema(files[0]))
    steps, channels, height, width = features['frames'].shape
    details = [
        f'Frames: [T, C, H, W] = [{steps}, {channels}, {height}, {width}], counts of negative and positive events',
        f'Sensor: {height} x {width} pixels',
        f'Type: {features["frames"].dtype}',
    ]
    return Facts('frames', dict(counts), list(features['label'].names), details)


def _of_files(folder: Path, kind: str, found: dict[str, list[Path]]) -> Facts:
    classes = {file.relative_to(folder).parts[1] for files in found.values() for file in files}
    files = [file for split in found.values() for file in split]
    if deep := next((file for file in files if len(file.relative_to(folder).parts) < 3), None):
        raise ValueError(f'{deep} lies in no class: expected SPLIT/CLASS/FILE')
    formats = Counter(file.suffix.lower() for file in files)
    details = [f'Files: {", ".join(f"{count} {suffix}" for suffix, count in sorted(formats.items()))}']
    if kind == 'recordings' and (size := recording_info(files[0]).sensor_size):
        details.append(f'Sensor: {size[0]} x {size[1]} pixels, as {files[0].name} says')
    return Facts(kind, {split: len(files) for split, files in found.items()}, sorted(classes, key=natural_key), details)


USAGE = {
    'frames': """\
from timm_snn.data import EventRows

train = EventRows('FOLDER', '{split}')
frames, label = train[0]  # [T, C, H, W]""",
    'recordings': """\
from timm_snn.data import EventFolder

train = EventFolder('FOLDER', '{split}', num_steps=10)
frames, label = train[0]""",
    'pictures': """\
from datasets import load_dataset

train = load_dataset('imagefolder', data_dir='FOLDER', split='{split}')""",
}


def make_dataset_card(facts: Facts, name: str, license: str, source: str | None = None) -> str:
    total = sum(facts.counts.values())
    is_events = facts.kind != 'pictures'
    data = DatasetCardData(
        license=license,
        pretty_name=name,
        task_categories=['image-classification'],
        size_categories=[next((size for limit, size in SIZES if total < limit), 'n>10M')],
        tags=['timm_snn', *(['event-camera', 'neuromorphic'] if is_events else [])],
    )
    usage = USAGE[facts.kind].format(split=next(iter(facts.counts)))
    rows = [f'| {split} | {count:,} |' for split, count in facts.counts.items()]
    classes = ', '.join(printable(name, 60) for name in facts.classes)
    details = [f'Classes: {len(facts.classes)}, {classes}', *facts.details]
    lines = '\n'.join(f'- **{line.partition(":")[0]}:**{line.partition(":")[2]}' for line in details)
    parts = [
        f'# {name}',
        f'{total:,} {facts.kind if is_events else "images"}'
        + (' of an event camera' if is_events else '')
        + ', for classification. This card was written by `hub/dataset_card.py` of timm_snn.',
        '## Samples',
        '\n'.join(['| split | samples |', '| --- | --- |', *rows]),
        '## Details',
        lines,
        '## Use',
        f'```python\n{usage}\n```',
        '## Source and licence',
        (source or 'TODO: where the data comes from, who recorded and labelled it.') + f' Licence: {license}.',
    ]
    return f'---\n{data.to_yaml()}\n---\n\n' + '\n\n'.join(parts) + '\n'


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/dataset_card.py', __doc__)
    add = parser.add_argument
    add('folder', type=Path)
    add('--repo', metavar='USER/NAME', help="whose NAME is the title; default: the folder's name")
    add('--license', help="of the data, as the Hub writes it: 'cc-by-4.0'; 'other' where it has no such name")
    add('--source', help='where the data comes from')
    add('--output', type=Path, help='default: print it')
    args = parser.parse_args(argv)
    if not args.license:
        raise UserError('a data set needs the licence of its data, which its owner knows: pass --license, as cc-by-4.0')
    name = args.repo.rpartition('/')[2] if args.repo else args.folder.resolve().name
    card = make_dataset_card(read_facts(args.folder), name, args.license, args.source)
    give_card(card, args.output)


if __name__ == '__main__':
    main()
