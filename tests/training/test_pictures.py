"""Pictures, folders and tables as people have them are read the same way by every script, or refused in a line."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timm_snn.folders import as_text
from timm_snn.training import pictures
from timm_snn.training.data import (
    DataSource,
    Samples,
    TrainingSamples,
    class_names,
    note_on_pictures,
    open_split,
)
from timm_snn.training.errors import UserError
from timm_snn.training.pictures import FolderReader, find_pictures, open_picture

GRAY = Image.fromarray((np.arange(48).reshape(6, 8) * 5).astype(np.uint8))
COLOUR = Image.merge('RGB', [GRAY, GRAY.rotate(180), Image.new('L', GRAY.size, 77)])


def palette_with_transparency() -> Image.Image:
    image = COLOUR.quantize(40)
    image.info['transparency'] = 0
    return image


# Name of the file -> what is saved, and what it is a picture of.
WAYS = {
    '8bit.png': (GRAY, GRAY),
    '16bit.png': (Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), GRAY),
    '16bit.tiff': (Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), GRAY),
    'alpha.png': (GRAY.convert('LA'), GRAY),
    'one.png': (GRAY.convert('1'), GRAY.convert('1').convert('L')),
    'palette.gif': (GRAY.convert('P'), GRAY),
    'rgb.webp': (COLOUR, COLOUR),
    'rgba.PNG': (COLOUR.convert('RGBA'), COLOUR),
    'transparent.png': (palette_with_transparency(), COLOUR.quantize(40).convert('RGB')),
    'cmyk.tif': (COLOUR.convert('CMYK'), COLOUR.convert('CMYK').convert('RGB')),
    'rgb.bmp': (COLOUR, COLOUR),
    'rgb.jp2': (COLOUR, COLOUR),
    'frames.gif': (GRAY.convert('P'), GRAY),
}
LOSSLESS = {'.webp': dict(lossless=True), '.jp2': dict(irreversible=False)}


def save(folder: Path, name: str) -> Image.Image:
    """Saved in one of the ways; returns what it is a picture of."""
    image, meant = WAYS[name]
    more = dict(save_all=True, append_images=[image.rotate(180)]) if name.startswith('frames') else {}
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **LOSSLESS.get(Path(name).suffix, {}), **more)
    return meant


@pytest.mark.parametrize('name', WAYS)
@pytest.mark.parametrize('mode', ['L', 'RGB'])
@pytest.mark.filterwarnings('ignore:Palette images with Transparency')
def test_a_picture_saved_in_any_way_has_the_same_pixels_everywhere(name, mode, tmp_path):
    meant = save(tmp_path / 'train' / 'a', name).convert(mode)
    dataset = open_split(DataSource('', tmp_path), 'train', in_chans=len(mode))
    readings = {
        'predict': open_picture(tmp_path / 'train' / 'a' / name, mode),
        'training': TrainingSamples(dataset, [0], seed=0)[0][0],
        'validation': Samples(dataset, [0])[0][0],
    }
    for who, image in readings.items():
        difference = np.abs(np.asarray(image).astype(int) - np.asarray(meant).astype(int)).max()
        assert image.mode == mode and difference <= 1, who  # Pillow rounds the luma of a palette's colours once more


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.tiff'])
def test_a_picture_is_looked_at_as_the_camera_was_held(orientation, name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    COLOUR.save(tmp_path / name, exif=exif, quality=100, subsampling=0)
    transformers = pytest.importorskip('transformers')
    theirs = transformers.image_utils.load_image(str(tmp_path / name))  # as its pipelines do
    assert np.array_equal(np.asarray(open_picture(tmp_path / name, 'RGB')), np.asarray(theirs))


@pytest.mark.parametrize('mode', ['I', 'F'])
def test_pixels_of_unknown_range_are_refused_everywhere(mode, tmp_path):
    folder = tmp_path / 'train' / 'a'
    folder.mkdir(parents=True)
    GRAY.convert(mode).save(folder / 'a.tiff')
    with pytest.raises(ValueError, match=f'32-bit pixels .mode {mode}.* save it with 8 or 16 bits'):
        open_picture(folder / 'a.tiff', 'L')
    dataset = open_split(DataSource('', tmp_path), 'train', in_chans=1)
    for samples in (Samples(dataset, [0]), TrainingSamples(dataset, [0], seed=0)):
        with pytest.raises(RuntimeError, match=r'sample a/a\.tiff is unreadable, .*32-bit pixels'):
            samples[0]


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    with pytest.raises(OSError, match='is a FIFO, expected a file'):
        open_picture(tmp_path / 'a.png', 'L')
    assert find_pictures(tmp_path) == ([], {'no files': 1})


@pytest.fixture
def folder(tmp_path):
    """Two classes of two pictures each, and what lies about."""
    for label in ('cat', 'dog'):
        for number in range(2):
            path = tmp_path / 'train' / label / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            GRAY.save(path)
    return tmp_path


def files(root: Path) -> list[str]:
    return [f'{Path(path).relative_to(root)}={label}' for path, label in FolderReader(root).samples]


def test_what_is_no_picture_of_a_class_is_left_out_and_said(folder):
    train = folder / 'train'
    expected = files(train)
    for junk in ('.ipynb_checkpoints', '__MACOSX', '.git'):
        (train / 'cat' / junk).mkdir()
        GRAY.save(train / 'cat' / junk / '0.png')
    for name in ('._0.png', '.DS_Store', 'Thumbs.db', 'notes.txt', 'README'):
        (train / 'cat' / name).write_bytes(b'junk')
    (train / 'broken.png').symlink_to(train / 'nothing')
    GRAY.save(train / 'in_no_class.png')
    (train / 'empty').mkdir()
    reader = FolderReader(train)
    assert files(train) == expected and reader.class_to_idx == {'cat': 0, 'dog': 1}
    assert reader.left_out == (
        '1 .db, 1 .txt, 5 hidden, 1 in no folder of a class, 1 links to nothing, 1 without a suffix'
    )


def test_linked_files_and_folders_are_followed_and_circles_are_not(folder, tmp_path):
    train = folder / 'train'
    (tmp_path / 'elsewhere').mkdir()
    GRAY.save(tmp_path / 'elsewhere' / '0.png')
    (train / 'linked').symlink_to(tmp_path / 'elsewhere')
    (train / 'cat' / '2.png').symlink_to(tmp_path / 'elsewhere' / '0.png')
    (train / 'dog' / 'circle').symlink_to(train)
    assert files(train) == ['cat/0.png=0', 'cat/1.png=0', 'cat/2.png=0', 'dog/0.png=1', 'dog/1.png=1', 'linked/0.png=2']
    assert len(find_pictures(train).files) == 6


def test_names_that_are_not_utf8_are_escaped(folder):
    os.rename(folder / 'train' / 'dog', os.fsencode(folder / 'train') + b'/d\xf6g')
    reader = FolderReader(folder / 'train')
    assert list(reader.class_to_idx) == ['cat', 'd\\udcf6g']
    assert len(reader) == 4 and reader[3][0].read()


def test_two_spellings_of_one_name_are_one_class():
    assert as_text('Cafe\u0301') == as_text('Caf\xe9') == 'Caf\xe9'


@pytest.mark.parametrize(
    ('inner', 'message'),
    [
        ('cat/crops', "'cat' has pictures and so has 'cat/crops' in it"),
        ('big/cat', "'big/cat' and 'cat' have the same name"),
    ],
)
def test_layouts_whose_classes_cannot_be_told_are_refused(inner, message, folder):
    (folder / 'train' / inner).mkdir(parents=True)
    GRAY.save(folder / 'train' / inner / '0.png')
    with pytest.raises(UserError, match=f'{message}.* Put all pictures in CLASS/'):
        open_split(DataSource('', folder), 'train', in_chans=1)


def test_classes_may_lie_deeper(folder):
    (folder / 'train').rename(folder / 'animals')
    (folder / 'train').mkdir()
    (folder / 'animals').rename(folder / 'train' / 'animals')
    assert FolderReader(folder / 'train').class_to_idx == {'cat': 0, 'dog': 1}


def test_pictures_without_classes_are_refused(tmp_path):
    (tmp_path / 'train').mkdir()
    GRAY.save(tmp_path / 'train' / '0.png')
    with pytest.raises(UserError, match='has no pictures in CLASS/; there are 1 in no folder of a class'):
        open_split(DataSource('', tmp_path), 'train', in_chans=1)


def test_splits_have_their_usual_names(folder):
    (folder / 'train').rename(folder / 'val')
    assert len(open_split(DataSource('', folder), 'validation', in_chans=1)) == 4
    with pytest.raises(UserError, match=r'it has no folder train/, but val: put pictures in train/CLASS/'):
        open_split(DataSource('', folder), 'train', in_chans=1)


def test_classes_are_numbered_as_in_timm_and_in_torchvision(tmp_path):
    for label in ('2', '10'):
        (tmp_path / 'train' / label).mkdir(parents=True)
        GRAY.save(tmp_path / 'train' / label / '0.png')
    for name, expected in (('', ['2', '10']), ('torch/image_folder', ['10', '2'])):
        assert class_names(open_split(DataSource(name, tmp_path), 'train', in_chans=1)) == expected


def test_an_unreadable_sample_is_replaced_by_the_next_of_the_run(folder, caplog):
    (folder / 'train' / 'cat' / '0.png').write_bytes(b'torn')
    dataset = open_split(DataSource('', folder), 'train', in_chans=1)
    samples = TrainingSamples(dataset, [0, 3], seed=0)
    assert samples[0][1] == 1 and 'sample cat/0.png is unreadable' in caplog.text
    with pytest.raises(RuntimeError, match=r'sample cat/0\.png is unreadable'):
        TrainingSamples(dataset, [0], seed=0)[0]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Writes a table and opens it as the recipes do."""
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'hf')
    datasets.disable_progress_bars()
    buffer = io.BytesIO()
    GRAY.save(buffer, 'PNG')

    def open_it(labels, kind=None, images=None, **options):
        features = datasets.Features(
            image=datasets.Image(), label=kind or datasets.ClassLabel(names=['a', 'b']), text=datasets.Value('string')
        )
        images = images or [{'bytes': buffer.getvalue(), 'path': None}] * len(labels)
        columns = {'image': images, 'label': labels, 'text': ['x'] * len(labels)}
        (tmp_path / 'table').mkdir()
        datasets.Dataset.from_dict(columns, features=features).to_parquet(
            str(tmp_path / 'table' / 'train-00000-of-00001.parquet')
        )
        source = DataSource(f'hfds/{tmp_path}/table', tmp_path / 'hf', **options)
        return open_split(source, 'train', in_chans=1), datasets

    yield open_it
    datasets.enable_progress_bars()


def test_rows_without_label_or_picture_are_left_out_and_said(table, caplog):
    buffer = io.BytesIO()
    GRAY.save(buffer, 'PNG')
    picture = {'bytes': buffer.getvalue(), 'path': None}
    dataset, _ = table([0, -1, 1, None, 0, 1], images=[picture] * 4 + [None, picture])
    assert [Samples(dataset, range(len(dataset)))[i][1] for i in range(len(dataset))] == [0, 1, 1]
    assert '2 without a label, 1 without a picture' in caplog.text


@pytest.mark.parametrize(
    ('labels', 'kind', 'message'),
    [
        (['a', 'b'], 'string', "column 'label' holds string, such as 'a'.*class_encode_column numbers this one"),
        ([0.0, 1.0], 'float32', "column 'label' holds float"),
        ([True, False], 'bool', "column 'label' holds true and false"),
        ([None, None], None, "no row has a picture in 'image' and a label in 'label'"),
    ],
)
def test_columns_without_whole_numbers_are_refused_before_a_run(table, labels, kind, message):
    datasets = pytest.importorskip('datasets')
    with pytest.raises(UserError, match=message):
        table(labels, kind and datasets.Value(kind))


@pytest.mark.parametrize('options', [dict(input_key='img'), dict(target_key='y')])
def test_a_missing_column_is_named_with_those_that_are_there(table, options):
    (key,) = options.values()
    with pytest.raises(UserError, match=f'it has no column {key!r} but image, label, text'):
        table([0, 1], **options)


def test_no_format_that_runs_other_programs_is_read():
    assert not {'.eps', '.ps', '.wmf', '.h5', '.mpg'} & pictures.picture_suffixes()
    assert {'.png', '.jpg', '.webp', '.bmp', '.tif', '.tiff', '.gif', '.jp2', '.avif'} <= pictures.picture_suffixes()


@pytest.mark.parametrize(
    ('image', 'input_size', 'says'),
    [
        (
            COLOUR,
            (1, 6, 6),
            'is 8 x 6 in colour, and the model sees 6 x 6 in grey, normalised by mean 0.286 and std 0.353',
        ),
        (COLOUR.resize((500, 375)), (3, 28, 28), 'is 500 x 375 in colour, and the model sees 28 x 28 in colour'),
        (GRAY.resize((56, 56)), (1, 28, 28), 'is 56 x 56 in grey'),
        (COLOUR, (3, 6, 6), None),
        (GRAY, (1, 28, 28), None),
        (COLOUR.resize((256, 256)), (3, 224, 224), None),
    ],
)
def test_what_a_model_does_not_see_of_pictures_is_said(image, input_size, says, tmp_path):
    (tmp_path / 'train' / 'a').mkdir(parents=True)
    image.save(tmp_path / 'train' / 'a' / '0.png')
    config = {'input_size': input_size, 'mean': (0.286,), 'std': (0.353,)}
    note = note_on_pictures(open_split(DataSource('', tmp_path), 'train', in_chans=input_size[0]), config)
    assert says in note if says else note is None
