"""Cached arrays are those that were stored, or none: whatever happens to the files, settings and sources."""

import multiprocessing
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from timm_snn.data.cache import FrameCache

FRAMES = np.arange(2 * 2 * 3 * 5, dtype=np.uint8).reshape(2, 2, 3, 5)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / 'source.bin'
    path.write_bytes(b'events')
    return path


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / 'frames', {'num_steps': 2})


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.uint32, np.uint64])
def test_what_is_stored_is_loaded(cache, source, dtype):
    stamp = cache.stamp([source])
    assert cache.load('Train/0/1.bin', stamp) is None
    cache.store('Train/0/1.bin', stamp, FRAMES.astype(dtype) * 3)
    loaded = cache.load('Train/0/1.bin', stamp)
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded, FRAMES.astype(dtype) * 3)
    assert cache.load('Train/0/2.bin', stamp) is None


def test_other_settings_and_changed_sources_make_it_stale(cache, source):
    first = cache.stamp([source])
    cache.store('a', first, FRAMES)
    other = FrameCache(cache.folder, {'num_steps': 3})
    assert other.load('a', other.stamp([source])) is None
    time = source.stat().st_mtime_ns
    os.utime(source, ns=(time, time + 1))
    assert cache.load('a', cache.stamp([source])) is None
    os.utime(source, ns=(time, time))
    assert cache.load('a', cache.stamp([source])) is not None
    source.write_bytes(b'more events')
    os.utime(source, ns=(time, time))
    assert cache.load('a', cache.stamp([source])) is None
    assert cache.load('a', cache.stamp([source, source])) is None


def test_a_source_of_the_same_size_and_time_elsewhere_is_another(cache, source, tmp_path):
    """Two data sets may share a folder, and one may be moved together with its own."""
    cache.store('a', cache.stamp([source]), FRAMES)
    (tmp_path / 'other').mkdir()
    twin = tmp_path / 'other' / source.name
    twin.write_bytes(source.read_bytes())
    os.utime(twin, ns=(source.stat().st_mtime_ns,) * 2)
    assert cache.load('a', cache.stamp([twin])) is None
    tmp_path.rename(tmp_path.with_name('moved'))
    moved = FrameCache(tmp_path.with_name('moved') / 'frames', cache.settings)
    assert moved.load('a', moved.stamp([tmp_path.with_name('moved') / source.name])) is not None


def test_no_flipped_bit_and_no_truncation_is_ever_used(cache, source):
    stamp = cache.stamp([source])
    cache.store('a', stamp, FRAMES)
    file = cache.path('a')
    whole = file.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for byte in range(len(whole)):
            file.write_bytes(whole[:byte])
            assert cache.load('a', stamp) is None
            flipped = bytearray(whole)
            flipped[byte] ^= 1 << byte % 8
            file.write_bytes(flipped)
            assert cache.load('a', stamp) is None, byte
    file.write_bytes(whole)
    assert cache.load('a', stamp) is not None


@pytest.mark.parametrize(
    'spoil',
    [
        lambda file: file.write_bytes(b''),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b'\0'),
        lambda file: np.save(file.open('wb'), FRAMES),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=['empty', 'torn', 'changed', 'foreign', 'folder'],
)
def test_damage_is_warned_of(cache, source, spoil):
    stamp = cache.stamp([source])
    cache.store('a', stamp, FRAMES)
    spoil(cache.path('a'))
    with pytest.warns(UserWarning, match=r'cached frames .*a\.safetensors .* made anew'):
        assert cache.load('a', stamp) is None


def test_a_failed_write_leaves_the_old_file_and_nothing_else(cache, source, monkeypatch):
    stamp = cache.stamp([source])
    cache.store('a', stamp, FRAMES)

    def full(path, data):
        with path.open('wb') as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.warns(UserWarning, match=r'cannot write .*No space left on device.*cache=FOLDER .* or cache=None'):
        cache.store('a', stamp, FRAMES + 1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        cache.store('b', stamp, FRAMES)  # said once
    assert [file.name for file in cache.folder.iterdir()] == ['a.safetensors']
    np.testing.assert_array_equal(cache.load('a', stamp), FRAMES)


def test_the_folder_may_be_deleted_at_any_time(cache, source, monkeypatch):
    stamp = cache.stamp([source])
    cache.store('Train/0/1.bin', stamp, FRAMES)
    shutil.rmtree(cache.folder)
    assert cache.load('Train/0/1.bin', stamp) is None
    cache.store('Train/0/1.bin', stamp, FRAMES)
    np.testing.assert_array_equal(cache.load('Train/0/1.bin', stamp), FRAMES)

    write = Path.write_bytes
    deletions = [True, True]  # between the folder and its file

    def deleted(path, data):
        if deletions.pop():
            shutil.rmtree(cache.folder)
        return write(path, data)

    monkeypatch.setattr(Path, 'write_bytes', deleted)
    cache.store('Train/0/1.bin', stamp, FRAMES)
    assert cache.load('Train/0/1.bin', stamp) is None
    deletions[:] = [False, True]
    cache.store('Train/0/1.bin', stamp, FRAMES)
    np.testing.assert_array_equal(cache.load('Train/0/1.bin', stamp), FRAMES)


def test_a_file_or_a_folder_in_the_way_is_survived(cache, source):
    stamp = cache.stamp([source])
    cache.path('b').mkdir()
    (cache.folder / 'Train').write_text('not a folder')
    for name in ('b', 'Train/0/1.bin'):
        cache.warned = False
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert cache.load(name, stamp) is None
        with pytest.warns(UserWarning, match='cannot write'):
            cache.store(name, stamp, FRAMES)


def test_a_fifo_and_a_dtype_of_others_are_made_anew(cache, source):
    stamp = cache.stamp([source])
    os.mkfifo(cache.path('a'))
    torch_file = {'array': torch.ones(2, dtype=torch.bfloat16)}
    safetensors.torch.save_file(torch_file, cache.path('b'), {'name': 'b', 'stamp': stamp})
    for name in ('a', 'b'):
        with pytest.warns(UserWarning, match='made anew'):
            assert cache.load(name, stamp) is None


def test_a_folder_that_cannot_be_made_says_what_to_do(source):
    with pytest.raises(OSError, match=r'cannot write .*source\.bin/frames .* pass cache=FOLDER .* or cache=None'):
        FrameCache(source / 'frames', {})


def write_and_read(folder: Path, source: Path, start: multiprocessing.Barrier, problems: multiprocessing.Queue) -> None:
    """Many times over: store one of two arrays under one name, load whole ones only."""
    cache = FrameCache(folder, {})
    arrays = [np.full((16, 2, 64, 64), value, np.uint8) for value in (1, 2)]
    stamp = cache.stamp([source])
    start.wait()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for turn in range(100):
            cache.store('a/b', stamp, arrays[turn % 2])
            loaded = cache.load('a/b', stamp)
            if loaded is None or not any(np.array_equal(loaded, array) for array in arrays):
                problems.put('not whole')
    for warning in caught:
        problems.put(str(warning.message))


def test_processes_that_write_one_file_at_once_never_read_a_part_of_it(tmp_path, source):
    context = multiprocessing.get_context('fork')
    start, problems = context.Barrier(4), context.Queue()
    arguments = (tmp_path / 'frames', source, start, problems)
    processes = [context.Process(target=write_and_read, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert problems.empty()
    assert [file.name for file in (tmp_path / 'frames' / 'a').iterdir()] == ['b.safetensors']
