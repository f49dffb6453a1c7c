"""Time how frames are made of a camera's events, beside SpikingJelly and tonic, in one run.

    python benchmarks/frames.py                    windows of 100 ms of a 640 x 480 camera, on one thread
    python benchmarks/frames.py --events 1000000   more events in each

The events are made up: uniform over pixels and time, which is the worst case for caches. The table goes to the terminal
and to <out>/frames.csv and .png. Its columns:

    ms, spread      from the median of the rounds, in which all take turns; (slowest - fastest) / median
    windows/s       1000 / ms
    peak / frames   allocated while frames are made, with them, in sizes of the frames

Frames of the sensor's size have bins of as many events, as those of the peers; the others bins of as many milliseconds.
`iter_frames` reads a file of EVT 2.0 that holds 50 windows, and the time is that of one. `counted, then resized` makes
frames of the sensor's size first. Needs the extra bench; tonic takes part if it is installed. A peer whose frames
differ is not timed.
"""

import argparse
import functools
import runpy
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from timing import Clock, Table, Timing

from timm_snn.data import Events, iter_frames, to_frames
from timm_snn.data.frames import count_events, frames_of_counts

# The tests' writers of recordings, which no installation has.
WRITERS = runpy.run_path(str(Path(__file__).parents[1] / 'tests' / 'support' / 'writers.py'))
COLUMNS = ['frames', 'events', 'variant', 'ms', 'spread', 'windows/s', 'peak / frames']
SENSOR = (480, 640)
WINDOW = 100_000  # us
WINDOWS = 50  # of the file


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    clock = Clock('cpu', 1, args.rounds)
    table = Table('frames', clock.environment() | {'numpy': np.__version__, 'sensor': '480 x 640 pixels'}, COLUMNS)
    for count in args.events:
        events = made_up(count)
        for size in (None, 128):
            measure(table, clock, events, args.steps, size)
    with tempfile.TemporaryDirectory() as folder:
        for count in args.events:
            file = WRITERS['evt2'](Path(folder) / f'{count}.raw', made_up(count * WINDOWS, WINDOWS * WINDOW), size=640)
            stream = clock.compare({'timm_snn iter_frames': functools.partial(read_all, file, args.steps)})
            shape = f'{args.steps} x 2 x 128 x 128'
            add(table, shape, count, 'timm_snn iter_frames, from a file', stream['timm_snn iter_frames'], WINDOWS)
    measure(table, clock, made_up(args.events[0]), args.long_steps, None)
    table.save(args.out or Path(__file__).parent / 'results' / 'cpu')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--events', type=int, nargs='+', default=[33_000, 100_000], help='in a window')
    parser.add_argument('--steps', type=int, default=10, help='T')
    parser.add_argument('--long-steps', type=int, default=75, help='T of the frames that need most memory')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, help='default: results/cpu beside this file')
    return parser.parse_args(argv)


def made_up(count: int, last: int = WINDOW) -> Events:
    random = np.random.default_rng(0)
    t = np.sort(random.integers(0, last, count))
    x, y = (random.integers(0, side, count).astype(np.int16) for side in SENSOR[::-1])
    return Events(t, x, y, random.integers(0, 2, count).astype(np.uint8))


def measure(table: Table, clock: Clock, events: Events, steps: int, size: int | None) -> None:
    bins: dict[str, Any] = dict(split_by='number') if size is None else dict(start=0, end=WINDOW)
    runs: dict[str, Callable[[], np.ndarray]] = {
        'timm_snn': lambda: to_frames(events, steps, sensor_size=SENSOR, size=size, **bins)
    }
    if size is not None:
        runs['counted, then resized'] = lambda: frames_of_counts(
            count_events(events, steps, sensor_size=SENSOR, **bins), size=size
        )
    else:
        runs |= peers(events, steps)
    expected = runs['timm_snn']()
    for name in list(runs):
        if not np.array_equal(runs[name](), expected):
            print(f'without {name}: its frames differ')
            del runs[name]
    shape = ' x '.join(map(str, expected.shape))
    for name, timing in clock.compare(runs).items():
        add(table, shape, len(events), name, timing, 1, peak_bytes(runs[name]) / expected.nbytes)


def add(
    table: Table, shape: str, events: int, variant: str, timing: Timing, windows: int, peak: float | None = None
) -> None:
    ms = 1e3 * timing.median / windows
    rest: dict[str, Any] = {'windows/s': 1e3 / ms, 'peak / frames': peak}
    table.add(frames=shape, events=f'{events:,}', variant=variant, ms=ms, spread=timing.spread, **rest)


def peers(events: Events, steps: int) -> dict[str, Callable[[], np.ndarray]]:
    found: dict[str, Callable[[], np.ndarray]] = {}
    try:
        from spikingjelly.datasets import integrate_events_by_fixed_frames_number as integrate
    except ModuleNotFoundError as error:
        print(f"without spikingjelly 2: {error}: pip install 'timm-snn[bench]'")
    else:
        found['spikingjelly 2'] = lambda: integrate(events._asdict(), 'number', steps, *SENSOR)
    try:
        from tonic.transforms import ToFrame
    except ModuleNotFoundError as error:
        print(f'without tonic: {error}: pip install tonic')
    else:
        array = np.zeros(len(events), [('x', 'i2'), ('y', 'i2'), ('t', 'i8'), ('p', 'u1')])
        for name in array.dtype.names or ():
            array[name] = events[name]
        to_frame = ToFrame(sensor_size=(SENSOR[1], SENSOR[0], 2), n_event_bins=steps)
        found['tonic'] = lambda: to_frame(array)
    return found


def read_all(file: Path, steps: int) -> None:
    for _ in iter_frames(file, steps, window=WINDOW, sensor_size=SENSOR, size=128, start=0):
        pass


def peak_bytes(run: Callable[[], object]) -> int:
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == '__main__':
    main()
