"""Time answers to a live event camera: from the events of a bin of 10 ms to the logits, one bin after the other.

    python benchmarks/stream.py                       both models, one thread and two
    python benchmarks/stream.py --models msvit_4_96 --threads 1 --bins 300

The events are of moving digits (`timm_snn.data.EventDigits`), scaled to the sensor of the model. A bin's latency has
the frame that is made of its events and the fused model's answer. Beside the stream, which shows the model that frame
alone and carries its membranes, the model is given the last T frames again, as one would without a stream, for every
tenth bin. Weights are random, and batch norms such that convolutions see --density nonzeros, as in model.py.

A table for each model goes to the terminal and to <out>/stream-MODEL.csv and .png. Its columns:

    frame, median, p95   milliseconds: of making the frame, and of all from events to logits
    in time %            of the bins, answered before the next one is over
"""

import argparse
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from model import set_density
from timing import Clock, Table
from torch import Tensor

import timm_snn
from timm_snn.data import EventDigits, Events, iter_windows, to_frames

BIN = 10_000  # us
SENSORS = {'msvit_4_96': 34, 'msvit_2_256': 128}
COLUMNS = ['size', 'threads', 'variant', 'T', 'events/bin', 'frame', 'median', 'p95', 'in time %', 'bins']


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    head = Clock('cpu').environment() | {
        'threads': ' and '.join(map(str, args.threads)),
        'density': f'{args.density} of the inputs of convolutions are not 0',
        'times': 'milliseconds from the events of a bin of 10 ms to the logits, batch of 1',
    }
    for name in args.models:
        windows = camera(SENSORS[name], args.bins)
        net = network(name, windows, args.density)
        table = Table(f'stream-{name}', head, COLUMNS)
        for threads in args.threads:
            torch.set_num_threads(threads)
            for row in measure(net, SENSORS[name], windows):
                table.add(size=SENSORS[name], threads=threads, **row)
        table.save(args.out or Path(__file__).parent / 'results' / 'cpu-defaults')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=SENSORS, default=list(SENSORS))
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--bins', type=int, default=100)
    parser.add_argument('--density', type=float, default=0.15, help='nonzeros that convolutions see')
    parser.add_argument('--out', type=Path, help='default: results/cpu-defaults beside this file')
    return parser.parse_args(argv)


def camera(size: int, bins: int) -> list[tuple[int, Events]]:
    """The events of each bin: digits that follow each other."""
    digits, start = EventDigits(train=False), 0
    parts: list[Events] = []
    while start < bins * BIN:
        events = digits.recording(len(parts))
        x, y = (axis.astype(np.int32) * size // 128 for axis in (events.x, events.y))
        parts.append(events._replace(t=events.t + start, x=x, y=y))
        start += 300_000
    return list(iter_windows(parts, BIN, start=0, end=bins * BIN))


def frame_of(start: int, events: Events, size: int) -> Tensor:
    """Counts [1, 2, H, W]."""
    return torch.from_numpy(to_frames(events, 1, sensor_size=(size, size), start=start, end=start + BIN))


def network(name: str, windows: list[tuple[int, Events]], density: float) -> Any:
    torch.manual_seed(0)
    net: Any = timm.create_model(name, in_chans=2, num_classes=10)
    T, net.num_steps = net.num_steps, 2  # which are enough to find the density
    set_density(net, torch.stack([frame_of(*window, SENSORS[name]) for window in windows[4:6]], 1), density)
    net.num_steps = T
    return timm_snn.fuse(net)


def measure(model: Any, size: int, windows: list[tuple[int, Events]]) -> list[dict[str, Any]]:
    stream = timm_snn.stream(model)
    last = deque([frame_of(*windows[0], size)] * model.num_steps, maxlen=model.num_steps)
    answers: dict[str, Callable[[Tensor], Tensor]] = {
        'stream': stream,
        'the last T frames again': lambda frame: model(torch.stack([*last], 1)),
    }
    times: dict[str, list[float]] = {variant: [] for variant in ('frame', *answers)}
    for _ in range(3):  # builds and chooses kernels
        stream(last[0])
    with torch.inference_mode():
        answers['the last T frames again'](last[0])
        for i, window in enumerate(windows):
            for variant, answer in answers.items():
                if variant != 'stream' and i % 10:
                    continue
                begin = time.perf_counter()
                frame = frame_of(*window, size)
                made = time.perf_counter()
                if variant != 'stream':
                    last.append(frame)
                answer(frame).argmax(1).item()
                times[variant].append(1000 * (time.perf_counter() - begin))
                times['frame'].append(1000 * (made - begin))
            if i % 10:
                last.append(frame_of(*window, size))
    per_bin = sum(len(events) for _, events in windows) / len(windows)
    return [
        {
            'variant': variant,
            'T': model.num_steps,
            'events/bin': round(per_bin),
            'frame': float(np.median(times['frame'])),
            'median': float(np.median(times[variant])),
            'p95': float(np.percentile(times[variant], 95)),
            'in time %': 100 * float(np.mean(np.array(times[variant]) < BIN / 1000)),
            'bins': len(times[variant]),
        }
        for variant in answers
    ]


if __name__ == '__main__':
    main()
