"""timm_snn.files: whole files or none, no FIFO, nothing in a message that a terminal obeys."""

import os

import pytest

from timm_snn.files import check_regular_file, printable, write_whole, write_whole_text


def write_half(path):
    with write_whole(path) as unfinished:
        unfinished.write_text('half of the new')
        raise OSError('disk is full')


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'config.yaml'
    write_whole_text(path, 'old')
    with pytest.raises(OSError, match='disk is full'):
        write_half(path)
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['config.yaml']


def test_the_name_changes_hands_when_the_file_is_whole(tmp_path):
    path = tmp_path / 'a.json'
    with write_whole(path) as unfinished:
        unfinished.write_text('new')
        assert not path.exists()
        assert unfinished.suffix != path.suffix
    assert path.read_text() == 'new'


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    write_whole_text(tmp_path / 'a.csv', os.fsdecode(b'm\xe9.png'))
    assert (tmp_path / 'a.csv').read_text() == 'm\\udce9.png'


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / 'fifo')
    (tmp_path / 'link').symlink_to(tmp_path / 'fifo')
    for name, what in (('fifo', 'a FIFO'), ('link', 'a FIFO'), ('.', 'a folder')):
        with pytest.raises(OSError, match=f'is {what}, expected a file'):
            check_regular_file(tmp_path / name)
    with pytest.raises(OSError, match='is a device'):
        check_regular_file('/dev/zero')
    (tmp_path / 'file').touch()
    check_regular_file(tmp_path / 'file')


@pytest.mark.parametrize('text', ['\x1b]0;owned\x07\n\x1b[2J', 'a\x85b\u2028c\x9b31m', '\udce9', '\u202egnp.exe'])
def test_no_control_character_reaches_a_message(text):
    assert printable(text).isprintable()


def test_a_message_shows_the_start_of_a_long_text():
    assert printable('a' * 10**6) == 'a' * 200 + '... (1000000 characters)'
    assert printable('\x00' * 150).isprintable()
    assert len(printable('\x00' * 10**6)) < 300
    assert printable('猫 and dog') == '猫 and dog'
