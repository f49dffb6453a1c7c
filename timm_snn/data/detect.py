"""Which format a recording has: by its first bytes where formats have any of their own, else by its suffix."""

import os
import re

from .binary import version
from .prophesee import TO_CSV, header
from .recording import Recording

__all__ = ['KNOWN', 'detect', 'suffix_of']

MAGIC = {
    b'\x93NUMPY': 'npy',
    b'PK\x03\x04': 'npz',
    b'PK\x05\x06': 'npz',
    b'\x89HDF\r\n\x1a\n': 'hdf5',
    b'#ROSBAG V': 'rosbag',
    b'\x89MCAP0\r\n': 'mcap',
}
AEDAT = {'2.0': 'aedat2', '3.1': 'aedat3', '4.0': 'aedat4'}
EVT = {'EVT2': 'evt2', 'EVT21': 'evt21', 'EVT3': 'evt3'}
SUFFIXES = {'.bin': 'nmnist', '.csv': 'text', '.dat': 'dat', '.tsv': 'text', '.txt': 'text'}
BY_MAGIC = ['.aedat', '.aedat4', '.bag', '.h5', '.hdf5', '.mcap', '.npy', '.npz', '.raw']
KNOWN = (*BY_MAGIC, *SUFFIXES)

V2E = ('v2e -i {file} --dvs_text events.txt (pip install v2e), which simulates a camera', "read_events('events.txt')")
# what files begin with that have no reader here, what they are, and the two commands that convert them
OTHERS = {
    rb'SQLite format 3\0': (
        'a bag of ROS 2 in SQLite',
        "rosbags-convert --src {folder} --dst {stem}.bag (pip install 'timm-snn[events]')",
        "read_events('{stem}.bag')",
    ),
    rb'Event Stream': (
        'an Event Stream',
        "np.save('{stem}.npy', np.concatenate(list(event_stream.Decoder('{file}')))) (pip install event_stream)",
        "read_events('{stem}.npy')",
    ),
    rb'MATLAB 5\.0': (
        'a file of MATLAB',
        "m = scipy.io.loadmat('{file}') (pip install scipy)",
        "np.savez('{stem}.npz', **{{name: m[name].ravel() for name in 'txyp'}}), by the names that m has",
    ),
    rb'....ftyp|RIFF....AVI |\x1aE\xdf\xa3': ('a video, which has frames', *V2E),
    rb'\x89PNG|\xff\xd8\xff|GIF8': ('a picture', *V2E),
}
ANY_OTHER = re.compile(b'|'.join(OTHERS), re.DOTALL)  # one look at each of many small files


def detect(recording: Recording) -> str:
    """The name of the reader. Raises: EventFileError that says what any other file is and how to convert it."""
    head = recording.peek(64)
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if ANY_OTHER.match(head):
        found = next(other for pattern, other in OTHERS.items() if re.match(pattern, head, re.DOTALL))
        raise recording.other(*found)
    suffix = suffix_of(recording.path)
    if head.startswith(b'#!AER-DAT') or suffix == '.aedat':
        number = version(recording)
        if number not in AEDAT:
            raise recording.error(0, f'expected #!AER-DAT with {", ".join(AEDAT)} in the first line, got {number}')
        return AEDAT[number]
    if head.startswith(b'% ') and (by_header := _by_header(recording)):
        return by_header
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    expected = f'expected what one of {", ".join(KNOWN)} begins with or such a suffix'
    raise recording.error(0, f'{expected}, got {head[:16]!r} and {suffix!r}: say kind=...')


def suffix_of(file: str | os.PathLike[str]) -> str:
    """In lower case, of what a file of gzip unpacks to."""
    stem, suffix = os.path.splitext(os.fsdecode(file).lower())
    return os.path.splitext(stem)[1] if suffix == '.gz' else suffix


def _by_header(recording: Recording) -> str | None:
    """Of a file that begins with a header as Prophesee's do."""
    fields = header(recording)
    recording.seek(0)
    if fields.get('data', '').startswith('file containing'):
        return 'dat'
    found = fields.get('format') or 'EVT' + fields.get('evt', '').replace('.', '').removesuffix('0')
    if found == 'EVT':
        return None
    if found.upper() not in EVT:
        raise recording.other(f'a recording of Prophesee in the format {found}', *TO_CSV)
    return EVT[found.upper()]
