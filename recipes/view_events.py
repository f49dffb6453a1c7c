"""Look at the recording of an event camera: its frames as a GIF and as a strip, and the spikes of a model on it.

    python recipes/view_events.py N-MNIST/Test/3/00019.bin --num-steps 8
    python recipes/view_events.py DvsGesture/user01_natural.aedat --trial 2
    python recipes/view_events.py N-MNIST/Test/3/00019.bin --model local-dir:output/nmnist/model

Leaves frames.gif and frames.png in --output, and with --model spike_raster.png: which neurons fire at which step.
Positive events are red, negative ones blue, a pixel that has both is dark; the strip says how many make a full colour.
Formats are AEDAT 3.1 and 2.0, N-MNIST's .bin, .npy and .npz.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from timm_snn.data import Events, read_events, read_gesture_labels, to_frames
from timm_snn.data.bins import bin_events
from timm_snn.files import write_whole
from timm_snn.profiling import pictures
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.models import open_model
from timm_snn.training.options import ArgumentParser, positive_int

SENSORS = {'.bin': (34, 34), '.aedat': (128, 128)}  # N-MNIST; DVS128 Gesture and CIFAR10-DVS


def make_parser() -> ArgumentParser:
    parser = ArgumentParser('recipes/view_events.py', __doc__)
    add = parser.add_argument
    add('recording', type=Path, help='file of events')
    add('--kind', help="format, where the file's name does not tell: aedat3, aedat2, nmnist, npy or npz")
    add('--trial', type=int, help='show this trial, from 0, of a recording with a _labels.csv beside it')
    add(
        '--sensor-size',
        type=positive_int,
        nargs=2,
        metavar=('H', 'W'),
        help='default: 34 34 for .bin, 128 128 for .aedat, or the least that holds all events',
    )
    add('--num-steps', type=positive_int, help="T; default: the model's, 10 without one")
    add('--split-by', choices=('number', 'time'), default='number', help='frames of as many events, or as long')
    add('--frame-ms', type=positive_int, default=150, help='how long the GIF shows a frame')
    add('--model', help="'local-dir:FOLDER', 'hf-hub:USER/NAME', or a name that timm knows")
    add('--size', type=positive_int, nargs=2, metavar=('H', 'W'), help="the model's input; default: the sensor's size")
    add('--layers', nargs='+', help='names for the spike raster, as in a report; default: all')
    add('--output', type=Path, default=Path('output/events'))
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    model = open_model(args.model, num_steps=args.num_steps) if args.model else None
    num_steps = args.num_steps or getattr(model, 'num_steps', 10)
    events = open_events(args.recording, args.kind, args.trial)
    least = (int(events.y.max()) + 1, int(events.x.max()) + 1)
    sensor_size = args.sensor_size or SENSORS.get(args.recording.suffix.lower(), least)
    frames = partial(to_frames, events, num_steps, sensor_size=tuple(sensor_size), split_by=args.split_by)
    with one_line_errors(f'make frames of {args.recording}'):
        counts = frames()
    full = max(1.0, float(np.percentile(counts[counts > 0], 99)))
    images = paint(counts, full)
    caption = f'{args.recording.name}: positive red, negative blue, full colour from {full:g} events'
    figures = {'frames.png': strip(images, titles(events, num_steps, args.split_by), caption)}
    if model is not None:
        with one_line_errors('make spike_raster.png'):
            shown = frames(channels=getattr(model, 'in_chans', 2), size=args.size and tuple(args.size))
            figures['spike_raster.png'] = pictures.spike_raster(model, torch.from_numpy(shown), args.layers)
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
        save_gif(images, args.output / 'frames.gif', args.frame_ms)
        for name, figure in figures.items():
            with write_whole(args.output / name) as unfinished:
                figure.savefig(unfinished, format='png')
    names = ', '.join(['frames.gif', *figures])
    print(f'{len(events.t):,} events of {args.recording} in {num_steps} frames: {names} in {args.output}')


def open_events(recording: Path, kind: str | None, number: int | None) -> Events:
    """The recording, or the trial of it with that number."""
    with one_line_errors(f'read {recording}'):
        events = read_events(recording, kind=kind)
        if number is None:
            return events
        trials = read_gesture_labels(recording.with_name(f'{recording.stem}_labels.csv'))
        if not 0 <= number < len(trials):
            raise ValueError(f'--trial {number} is not one of its {len(trials)} trials, 0 to {len(trials) - 1}')
        trial = trials[number]
        inside = (events.t >= trial.start) & (events.t < trial.end)
        if not inside.any():
            raise ValueError(f'it has no events in trial {number}, from {trial.start} to {trial.end} us')
        return events[inside]


def paint(counts: np.ndarray, full: float) -> np.ndarray:
    """Counts [T, 2, H, W], negative first, as ink on white: uint8 [T, H, W, 3]; `full` events are a full colour."""
    negative, positive = np.moveaxis(np.minimum(counts / full, 1), 1, 0)
    ink = np.stack([negative, np.maximum(negative, positive), positive], axis=-1)
    return (255 * (1 - ink)).round().astype(np.uint8)


def save_gif(images: np.ndarray, path: Path, frame_ms: int) -> None:
    """Each frame for `frame_ms`, in whole pixels of about 256 in all."""
    scale = max(1, round(256 / max(images.shape[1:3])))
    height, width = (scale * side for side in images.shape[1:3])
    frames = [Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST) for image in images]
    with write_whole(path) as unfinished:
        frames[0].save(unfinished, 'GIF', save_all=True, append_images=frames[1:], duration=frame_ms, loop=0)


def titles(events: Events, num_steps: int, split_by: str) -> list[str]:
    """A title for each frame: its number, its time since the first event, how many events it has."""
    events, borders = bin_events(events, num_steps, split_by=split_by)
    milliseconds = (events.t - events.t.min()) / 1000
    lines = []
    for i in range(num_steps):
        inside = milliseconds[borders[i] : borders[i + 1]]
        span = f'{inside.min():.0f} to {inside.max():.0f} ms' if len(inside) else ''
        lines.append(f'{i + 1}\n{span}\n{len(inside):,} events')
    return lines


def strip(images: np.ndarray, titles: list[str], caption: str) -> Figure:
    rows = -(-len(images) // 10)
    columns = -(-len(images) // rows)
    height, width = images.shape[1:3]
    figure = Figure(figsize=(1.5 * columns, 0.4 + (0.6 + 1.5 * height / width) * rows), layout='constrained', dpi=110)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, interpolation='nearest')
        axes.set_title(title, fontsize=7)
    figure.suptitle(caption, fontsize=9)
    return figure


if __name__ == '__main__':
    main()
