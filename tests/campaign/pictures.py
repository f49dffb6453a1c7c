"""Folders of pictures with what people and programs leave there, through a training: it ends, or says why in a line."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from PIL import Image
from sklearn.datasets import load_digits

from tests.campaign.runner import check_message
from tests.data.test_fuzz import damaged
from tests.support.damage import NO_FILES
from tests.support.scripts import run
from tests.support.training import QUICK

ARGUMENTS = [
    *(*QUICK, '--epochs', '1', '--max-steps', '1', '--batch-size', '8', '--in-chans', '3', '--num-classes', '3'),
    *('--workers', '0', '--log-with', 'none', '--overwrite', '--dataset', '', '--data-dir'),
]
MODES = ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV', 'I', 'F', 'I;16', 'I;16B']
FORMATS = ['png', 'PNG', 'jpg', 'JPEG', 'webp', 'bmp', 'tiff', 'gif', 'ppm', 'jp2', 'ico']
JUNK_FILES = [
    '.DS_Store',
    'Thumbs.db',
    '._1.png',
    'desktop.ini',
    'notes.txt',
    'labels.csv',
    '1.png.part',
    '.hidden.png',
]
JUNK_FOLDERS = ['.ipynb_checkpoints', '__MACOSX', '.git', 'empty', 'class0/class0', '@eaDir']
NAMES = [b'\xff\xfe.png', b'one\ntwo.png', b'\x1b[2J.png', b' .png', b'a' * 250 + b'.png', '\u202e\u00e9.png'.encode()]


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    whole, data = folder / 'whole', folder / 'data'
    images, labels = load_digits(n_class=3, return_X_y=True)
    for number, (image, label) in enumerate(zip(images[:36], labels, strict=False)):
        path = whole / ('train' if number < 27 else 'validation') / f'class{label}' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype('uint8')).convert('RGB').save(path)

    run('recipes/train.py', *ARGUMENTS, whole, '--output', folder / 'out')

    def trial(random: Random) -> str:
        shutil.rmtree(data, ignore_errors=True)
        shutil.copytree(whole, data)
        for _ in range(random.randint(1, 4)):
            _add_junk(data, random)
        try:
            run('recipes/train.py', *ARGUMENTS, data, '--output', folder / 'out')
        except SystemExit as end:
            if not str(end).startswith('error: '):
                raise
            check_message(end)
            return 'refused'
        return 'trained'

    yield trial


def _add_junk(data: Path, random: Random) -> None:
    classes = [path for path in data.glob('*/class*') if path.is_dir()]
    where = random.choice([data, *data.glob('*/'), *classes, *classes])
    path = where / f'{random.randrange(100)}.png'
    what = random.choice(['damage', 'kind', 'kind', 'file', 'folder', 'place', 'name', 'bomb', 'orientation', 'remove'])
    if path.exists() or path.is_symlink():
        what = random.choice(['damage', 'remove'])
    pictures = sorted(path for path in classes[0].glob('*.png') if path.is_file())
    if what in ('damage', 'name', 'remove') and not pictures:
        what = 'folder'
    match what:
        case 'damage':
            picture = random.choice(pictures)
            picture.write_bytes(random.choice([damaged(picture.read_bytes(), random), b'', b'no picture']))
        case 'kind':
            _save(path, random)
        case 'orientation':
            exif = Image.Exif()
            exif[0x0112] = random.randint(0, 9)
            Image.new('RGB', (8, 6)).save(path.with_suffix('.jpg'), exif=exif)
        case 'file':
            (where / random.choice(JUNK_FILES)).write_bytes(random.choice([b'', b'text', random.randbytes(100)]))
        case 'folder':
            folder = where / random.choice(JUNK_FOLDERS)
            folder.mkdir(parents=True, exist_ok=True)
            if pictures and random.random() < 0.5:
                shutil.copy(pictures[0], folder)
        case 'place':
            _put_no_file(path, random)
        case 'name':
            shutil.copy(pictures[0], os.fsencode(where) + b'/' + random.choice(NAMES))
        case 'bomb':
            path.write_bytes(_claiming(random.choice([(30_000, 30_000), (2**31 - 1, 2**31 - 1), (0, 5), (10**6, 1)])))
        case 'remove':
            shutil.rmtree(random.choice(classes))


def _save(path: Path, random: Random) -> None:
    """A picture in some mode and format, of those that go together."""
    path = path.with_suffix(f'.{random.choice(FORMATS)}')
    try:
        Image.new(random.choice(MODES), (8, 8), 1).save(path)
    except (ValueError, OSError, KeyError):
        path.unlink(missing_ok=True)


def _put_no_file(path: Path, random: Random) -> None:
    match random.choice([*NO_FILES, 'loop', 'link to a folder', 'link to a file']):
        case 'loop':
            path.with_suffix('').symlink_to('.')
        case 'link to a folder':
            path.with_suffix('').symlink_to('..')
        case 'link to a file':
            path.symlink_to('/etc/passwd')
        case kind:
            NO_FILES[kind](path)


def _claiming(size: tuple[int, int]) -> bytes:
    """A PNG of this size, with a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', *size, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
