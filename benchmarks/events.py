"""Time the readers of event recordings against those of other libraries, side by side in one run.

    python benchmarks/events.py                       N-MNIST in many files, the other formats in one each
    python benchmarks/events.py --formats evt3 dat    some of them
    python benchmarks/events.py --packet-events 100   AEDAT 3.1 in smaller packets

EVT 2.1 and 3.0 hold one event a word here; cameras put up to 32 and 12 into one, which takes less time for each. Text
is a tenth as long.

The files are made up, written to a temporary folder, and stay in the page cache: what is timed is reading from memory
and decoding on one thread, not the disk. The table goes to the terminal and to <out>/events.csv and .png. Its columns:

    M events/s, spread   from the median of the rounds, in which all take turns; (slowest - fastest) / median
    times spikingjelly   as many events per second as SpikingJelly
    peak MB              allocated while timm_snn reads all files, or the one file, in parts or whole

Needs the extra bench; tonic and expelliarmus take part if they are installed. A reader that fails or gives other
events is not timed. HDF5 and bags are left out, as h5py, rosbags and mcap read them.
"""

import argparse
import functools
import runpy
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from timing import Clock, Table

from timm_snn.data import Events, iter_events, read_events

# The tests' writers of recordings, which no installation has.
WRITERS = runpy.run_path(str(Path(__file__).parents[1] / 'tests' / 'support' / 'writers.py'))
Reader = Callable[[Path], object]  # gives t, x, y, p by name, or by key
SUFFIXES = {
    'nmnist': '.bin', 'aedat2': '.aedat', 'aedat3': '.aedat', 'npy': '.npy', 'npz': '.npz', 'evt2': '.raw',
    'evt21': '.raw', 'evt3': '.raw', 'dat': '.dat', 'aedat4': '.aedat4', 'text': '.csv',
}  # fmt: skip
COLUMNS = ['format', 'variant', 'M events/s', 'spread', 'times spikingjelly', 'peak MB']


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    clock = Clock('cpu', 1, args.rounds)
    made = f'N-MNIST {args.files} files of {args.file_events} events, others 1 of {args.events}'
    head = clock.environment() | {'files': f'{made}, packets of {args.packet_events}', 'numpy': np.__version__}
    table = Table('events', head, COLUMNS)
    peers = {
        'spikingjelly 2': spikingjelly_readers(),
        'tonic': tonic_readers(),
        'expelliarmus': expelliarmus_readers(),
    }
    for name in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            paths = write(name, Path(folder), args)
            for row in measure(name, paths, {peer: readers.get(name) for peer, readers in peers.items()}, clock):
                table.add(**row)
    table.save(args.out or Path(__file__).parent / 'results' / 'cpu')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--formats', nargs='+', choices=SUFFIXES, default=list(SUFFIXES), metavar='NAME')
    parser.add_argument('--events', type=int, default=10_000_000, help='in the one file of each format but N-MNIST')
    parser.add_argument('--packet-events', type=int, default=1000, help='in each packet of AEDAT 3.1')
    parser.add_argument('--files', type=int, default=1000, help='of N-MNIST')
    parser.add_argument('--file-events', type=int, default=4100, help='in each of these; real ones hold about as many')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, help='default: results/cpu beside this file')
    return parser.parse_args(argv)


def write(name: str, folder: Path, args: argparse.Namespace) -> list[Path]:
    random_events = WRITERS['random_events']
    if name == 'nmnist':
        seeds = range(args.files)
        return [WRITERS['nmnist'](folder / f'{i}.bin', random_events(args.file_events, 34, i)) for i in seeds]
    events = random_events(args.events // 10 if name == 'text' else args.events, last=1_000_000_000)
    path = folder / f'recording{SUFFIXES[name]}'
    if name == 'aedat3':
        return [WRITERS['aedat3'](path, events, args.packet_events)]
    return [WRITERS[name](path, events)]


def spikingjelly_readers() -> Mapping[str, Reader]:
    try:
        from spikingjelly.datasets import cifar10_dvs, load_aedat_v3, load_ATIS_bin
    except ModuleNotFoundError as error:
        print(f"without spikingjelly 2: {error}: pip install 'timm-snn[bench]'")
        return {}
    return {'nmnist': load_ATIS_bin, 'aedat2': cifar10_dvs._load_origin_data, 'aedat3': load_aedat_v3}


def tonic_readers() -> Mapping[str, Reader]:
    try:
        from tonic import io
        from tonic.datasets import NMNIST
    except ModuleNotFoundError as error:
        print(f'without tonic: {error}: pip install tonic')
        return {}
    return {
        'nmnist': functools.partial(io.read_mnist_file, dtype=NMNIST.dtype),
        'aedat2': lambda path: io.read_dvs_128(path)[1],
        'aedat3': lambda path: io.read_dvs_ibm(path)[1],
    }


def expelliarmus_readers() -> Mapping[str, Reader]:
    try:
        from expelliarmus import Wizard
    except ModuleNotFoundError as error:
        print(f'without expelliarmus: {error}: pip install expelliarmus')
        return {}
    return {kind: Wizard(encoding=kind).read for kind in ('evt2', 'evt3', 'dat')}


def in_parts(path: Path) -> None:
    for _ in iter_events(path, chunk_events=1 << 18):
        pass


def measure(name: str, paths: list[Path], peers: Mapping[str, Reader | None], clock: Clock) -> list[dict]:
    """Rows of the table."""
    expected = read_events(paths[0])
    ours: dict[str, Reader] = {'timm_snn': read_events, 'timm_snn in parts': in_parts}
    readers = ours | {
        peer: read for peer, read in peers.items() if read is not None and agrees(peer, read, paths[0], expected)
    }
    count = sum(len(read_events(path).t) for path in paths)
    runs = {variant: functools.partial(read_all, read, paths) for variant, read in readers.items()}
    times = clock.compare(runs)
    base = times.get('spikingjelly 2')
    return [
        {
            'format': name,
            'variant': variant,
            'M events/s': count / time.median / 1e6,
            'spread': time.spread,
            'times spikingjelly': base.median / time.median if base else None,
            'peak MB': peak_megabytes(runs[variant]) if variant in ours else None,
        }
        for variant, time in times.items()
    ]


def agrees(peer: str, read: Reader, path: Path, expected: Events) -> bool:
    try:
        got = read(path)
    except Exception as error:  # of a peer; it is printed, and the peer left out
        print(f'without {peer} for {path.name}: it raises {type(error).__name__}: {error}')
        return False
    wrong = [field for field in 'txyp' if not np.array_equal(got[field], getattr(expected, field))]  # type: ignore[index]
    if wrong:
        print(f'without {peer} for {path.name}: {", ".join(wrong)} differ')
    return not wrong


def read_all(read: Reader, paths: list[Path]) -> None:
    for path in paths:
        read(path)


def peak_megabytes(run: Callable[[], object]) -> float:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


if __name__ == '__main__':
    main()
