"""Rows of Hugging Face `datasets` hold the same frames, bit for bit."""

import pickle
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from tests.support import writers
from timm_snn.data import NMNIST, EventFolder, EventRows, rows, write_rows

datasets = pytest.importorskip('datasets')
pytestmark = pytest.mark.filterwarnings('ignore:.*results on it are not comparable')


@pytest.fixture(autouse=True)
def _quiet_and_clean(tmp_path, monkeypatch):
    """The library's own cache is in the test's folder, and no bar is drawn."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf')
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def root(tmp_path):
    for label in range(10):
        (tmp_path / 'Train' / str(label)).mkdir(parents=True)
        for number in range(2):
            events = writers.random_events(300, size=34, seed=10 * label + number)
            writers.nmnist(tmp_path / 'Train' / str(label) / f'{number}.bin', events)
    return tmp_path


def assert_same(rows, dataset):
    assert len(rows) == len(dataset) and rows.targets == dataset.targets
    assert (rows.classes, rows.sensor_size, rows.num_steps) == (dataset.classes, dataset.sensor_size, dataset.num_steps)
    for index in range(len(dataset)):
        (frames, label), (expected, expected_label) = rows[index], dataset[index]
        assert label == expected_label and type(label) is int
        assert frames.dtype == torch.float32 and torch.equal(frames, expected)


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
@pytest.mark.parametrize('options', [{}, {'channels': 3}, {'size': 20}, {'size': (17, 40), 'channels': 3}])
def test_rows_give_the_tensors_of_the_data_set(root, dtype, options):
    dataset = NMNIST(root, num_steps=3, split_by='time', **options)
    files = write_rows(dataset, root / 'rows', dtype=dtype)
    assert [file.name for file in files] == ['train-00000-of-00001.parquet']
    assert sorted((root / 'rows').iterdir()) == files
    assert_same(EventRows(root / 'rows', **options), dataset)


def test_rows_open_as_any_data_set_of_the_hub(root):
    dataset = NMNIST(root, num_steps=3)
    write_rows(dataset, root / 'rows')
    table = datasets.load_dataset(str(root / 'rows'), split='train')
    assert table.features['frames'] == datasets.Array4D((3, 2, 34, 34), 'uint16')
    assert table.features['label'] == datasets.ClassLabel(names=list('0123456789'))
    assert_same(EventRows(table), dataset)
    assert EventRows(table.select([3, 1])).targets == [1, 0]


def test_the_transform_gets_the_frames(root):
    dataset = NMNIST(root, num_steps=3, transform=lambda frames: frames / 2)
    write_rows(dataset, root / 'rows')
    assert_same(EventRows(root / 'rows', transform=lambda frames: frames / 2), dataset)


def test_many_rows_are_written_to_several_files_and_old_ones_replaced(root, monkeypatch):
    dataset = NMNIST(root, num_steps=3)
    (old,) = write_rows(dataset, root / 'rows')
    write_rows(dataset, root / 'rows', 'train-again')  # another split, in spite of its name
    row = 3 * 2 * 34 * 34 * 2
    monkeypatch.setattr(rows, 'SHARD_BYTES', 8 * row)
    monkeypatch.setattr(rows, 'GROUP_BYTES', 3 * row)
    files = write_rows(dataset, root / 'rows')
    assert [file.name for file in files] == [f'train-0000{number}-of-00003.parquet' for number in range(3)]
    assert not old.exists() and (root / 'rows' / 'train-again-00000-of-00001.parquet').exists()
    assert_same(EventRows(root / 'rows'), dataset)
    assert_same(EventRows(root / 'rows', 'train-again'), dataset)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=r'must hold all files train-00000-of-<count>\.parquet'):
        EventRows(root / 'rows')


def test_rows_written_again_are_read_anew(root):
    write_rows(NMNIST(root, num_steps=3), root / 'rows')
    EventRows(root / 'rows')[0]
    dataset = NMNIST(root, num_steps=3, split_by='time')
    write_rows(dataset, root / 'rows')
    assert_same(EventRows(root / 'rows'), dataset)


@pytest.mark.parametrize('left', [0, 100, -100])
def test_a_torn_file_of_rows_is_refused_by_name(root, left):
    (path,) = write_rows(NMNIST(root, num_steps=2), root / 'rows')
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=f'cannot read rows of frames from {path.parent}, split train: .*write_rows'):
        EventRows(path.parent)


def test_workers_read_rows(root):
    dataset = NMNIST(root, num_steps=3)
    write_rows(dataset, root / 'rows')
    table = EventRows(root / 'rows')
    loaded = [frames[0] for frames, _ in DataLoader(table, num_workers=2, multiprocessing_context='fork')]
    assert all(torch.equal(frames, dataset[index][0]) for index, frames in enumerate(loaded)) and len(loaded) == 20
    assert_same(pickle.loads(pickle.dumps(table)), dataset)


def test_a_count_that_the_rows_cannot_hold_leaves_no_file(root):
    events = writers.random_events(300, size=34)
    writers.nmnist(root / 'Train' / '9' / '1.bin', events._replace(x=events.x * 0, y=events.y * 0, p=events.p * 0))
    dataset = NMNIST(root, num_steps=1)
    with pytest.raises(ValueError, match=r'counts 300 events .* uint8 holds whole numbers up to 255'):
        write_rows(dataset, root / 'rows', dtype='uint8')
    assert list((root / 'rows').iterdir()) == []
    write_rows(dataset, root / 'rows')
    assert_same(EventRows(root / 'rows'), dataset)


def test_other_rows_are_refused():
    label = datasets.ClassLabel(names=['a', 'b'])
    frames = datasets.Array4D((3, 2, 4, 4), 'uint8')

    def table(**features):
        columns = {name: [np.zeros((3, 2, 4, 4)) if name == 'frames' else 0] for name in features}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(features))

    for wrong, message in (
        (table(label=label), "column 'frames' must be an Array4D .* not None"),
        (table(frames=datasets.Array4D((3, 2, 4, 4), 'float32'), label=label), "column 'frames' must be"),
        (table(frames=frames), "column 'label' must be a ClassLabel, not None"),
        (table(frames=frames, label=datasets.Value('int64')), "column 'label' must be a ClassLabel"),
    ):
        with pytest.raises(ValueError, match=message):
            EventRows(wrong)
    with pytest.raises(ValueError, match=r'one split, a datasets\.Dataset, not a DatasetDict'):
        EventRows(datasets.DatasetDict(train=table(frames=frames, label=label)))
    for options in ({'channels': 1}, {'size': 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            EventRows(table(frames=frames, label=label), **options)


def test_wrong_arguments_say_what_is_expected(root):
    with pytest.raises(FileNotFoundError, match='has none of them'):
        EventRows(root)
    with pytest.raises(ValueError, match="dtype must be 'uint8' or 'uint16', not 'float32'"):
        write_rows(NMNIST(root), root / 'rows', dtype='float32')


def test_without_the_library_the_message_says_how_to_install_it(root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    for use in (lambda: write_rows(NMNIST(root), root / 'rows'), lambda: EventRows(root)):
        with pytest.raises(ImportError, match='pip install datasets'):
            use()


@pytest.mark.parametrize('split', ['train', 'test', 'validation', 'val', 'fold_1', 'v2.test', 'Train'])
def test_a_split_of_any_name_is_found_again(root, split):
    dataset = NMNIST(root, num_steps=2)
    write_rows(dataset, root / 'rows', split)
    write_rows(dataset, root / 'rows', split + '_more')
    assert len(EventRows(root / 'rows', split)) == len(dataset)
    with pytest.raises(FileNotFoundError, match=f'its splits are .*{split}'):
        EventRows(root / 'rows', 'other')


class Counts:
    """What is written as it is: pairs of frames and labels."""

    classes = ('left', 'right')

    def __init__(self, *frames, **attributes):
        self.frames = frames
        vars(self).update(attributes)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index], index % 2


def test_subsets_and_concatenations_are_written_at_the_sensors_size(root):
    dataset = NMNIST(root, num_steps=3, channels=3, size=8, transform=lambda frames: frames / 2)
    plain = NMNIST(root, num_steps=3)
    both = ConcatDataset([Subset(dataset, [5, 2]), Subset(ConcatDataset([dataset, dataset]), [21, 0])])
    write_rows(both, root / 'rows')
    rows = EventRows(root / 'rows')
    assert len(rows) == 4 and rows.classes == plain.classes
    for (frames, label), index in zip(rows, (5, 2, 1, 0), strict=False):
        assert torch.equal(frames, plain[index][0]) and label == plain[index][1]


def test_a_folder_of_recordings_is_written_with_its_split_and_classes(root):
    for name in ('clap', 'wave'):
        (root / 'validation' / name).mkdir(parents=True)
        writers.npy(root / 'validation' / name / 'a.npy', writers.random_events(100, size=30))
    dataset = EventFolder(root, 'validation', sensor_size=(30, 40), num_steps=2)
    (file,) = write_rows(dataset, root / 'rows')
    assert file.name.startswith('validation-')
    assert_same(EventRows(root / 'rows', 'validation'), dataset)


def test_any_data_set_of_counts_is_written_as_it_is(root):
    frames = torch.randint(0, 5, (3, 2, 2, 4, 5)).float()
    write_rows(Counts(*frames), root / 'rows', 'train')
    rows = EventRows(root / 'rows')
    assert rows.classes == ('left', 'right') and [label for _, label in (rows[0], rows[1], rows[2])] == [0, 1, 0]
    assert all(torch.equal(rows[i][0], frames[i]) for i in range(3))


@pytest.mark.parametrize(
    ('dataset', 'options', 'message'),
    [
        (Counts(torch.zeros(3, 2, 4, 4)), {}, 'does not say of which split its samples are: pass split='),
        (
            Counts(torch.zeros(3, 2, 4, 4), classes=()),
            {'split': 'train'},
            'this data set has no classes: pass classes=',
        ),
        (Counts(torch.zeros(3, 3, 4, 4)), {'split': 'train'}, r'sample 0 must have frames \[T, 2, H, W\], not \[3, 3,'),
        (Counts(torch.full((3, 2, 4, 4), 0.5)), {'split': 'train'}, 'must have counts, and has a frame that is no'),
        (Counts(torch.full((3, 2, 4, 4), -1)), {'split': 'train'}, 'must have counts, and has -1'),
        (
            Counts(torch.zeros(3, 2, 4, 4), torch.zeros(2, 2, 4, 4)),
            {'split': 'train'},
            'sample 1 has frames of the sha',
        ),
        (Counts(), {'split': 'train'}, 'expected a data set with samples, got an empty one'),
    ],
)
def test_what_is_no_row_is_refused(root, dataset, options, message):
    with pytest.raises(ValueError, match=message):
        write_rows(dataset, root / 'rows', **options)
    assert not list(root.glob('rows/*'))


@pytest.mark.parametrize('split', ['', 'a/b', 'a-', '*', '..', 'a b'])
def test_a_split_that_no_reader_takes_is_refused(root, split):
    with pytest.raises(ValueError, match='split must be letters, digits and _'):
        write_rows(NMNIST(root, num_steps=2), root / 'rows', split)
