"""Which format a recording has: by its first bytes where formats have any of their own, else by its suffix."""

import os
import re
from pathlib import Path

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


def detect(recording: Recording) -> str:
    """The name of the reader. Raises: EventFileError that says what any other file is and how to convert it."""
    head = recording.peek(64)
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    for pattern, (what, *commands) in OTHERS.items():
        if re.match(pattern, head, re.DOTALL):
            raise recording.other(what, *commands)
    suffix = suffix_of(recording.path)
    if head.startswith(b'#!AER-DAT') or suffix == '.aedat':
        found = version(recording)
        if found not in AEDAT:
            raise recording.error(0, f'expected #!AER-DAT with {", ".join(AEDAT)} in the first line, got {found}')
        return AEDAT[found]
    if head.startswith(b'% ') and (by_header := _by_header(recording)):
        return by_header
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    expected = f'expected what one of {", ".join(KNOWN)} begins with or such a suffix'
    raise recording.error(0, f'{expected}, got {head[:16]!r} and {suffix!r}: say kind=...')


def suffix_of(file: str | os.PathLike[str]) -> str:
    """In lower case, of what a file of gzip unpacks to."""
    path = Path(os.fsdecode(file))
    return Path(path.stem if path.suffix.lower() == '.gz' else path.name).suffix.lower()


def _by_header(recording: Recording) -> str | None:
    """Of a file that begins with a header as Prophesee's do."""
    fields = header(recording)
    recording.seek(0)
    if fields.get('data', '').startswith('file containing'):
        return 'dat'
    found = fields.get('format') or ''.join(['EVT', *fields.get('evt', '').split('.')]).removesuffix('0')
    if found == 'EVT':
        return None
    if found.upper() not in EVT:
        raise recording.other(f'a recording of Prophesee in the format {found}', *TO_CSV)
    return EVT[found.upper()]
