"""Look at the recording of an event camera: its frames as a GIF and as a strip, and what a model makes of it.

    python recipes/view_events.py N-MNIST/Test/3/00019.bin --num-steps 8
    python recipes/view_events.py DvsGesture/user01_natural.aedat --trial 2 --model local-dir:output/gesture/model
    python recipes/view_events.py drive.raw --window 100 --start 2000 --end 4000 --region 100 200 240 240

Leaves frames.gif and frames.png in --output. Positive events are red, negative ones blue, a pixel that has both is
dark; the strip says how many make a full colour. Of more than 200 pixels along a side several are shown as one.

With --model it prints the likeliest classes, of each window with --window; the GIF shows their probabilities after
every frame, as the model sees them; and spike_raster.png which neurons fire at which step, of the window with most
events. Frames for the model are made as it says itself.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from timm_snn.data import (
    Events,
    FrameSettings,
    crop_events,
    frame_settings,
    has_frame_settings,
    iter_windows,
    read_events,
    read_gesture_labels,
    recording_info,
    to_frames,
)
from timm_snn.data.bins import bin_events
from timm_snn.files import write_whole
from timm_snn.profiling import pictures, profile
from timm_snn.progress import waiting
from timm_snn.training.console import give, say
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.evaluation import running_logits
from timm_snn.training.labels import descriptions_of, open_labels
from timm_snn.training.models import open_model
from timm_snn.training.options import ArgumentParser, add_pretrained, positive_int

SENSORS = {'.bin': (34, 34), '.aedat': (128, 128)}  # N-MNIST; DVS128 Gesture and CIFAR10-DVS
MOST_FRAMES = 200  # in a GIF and a strip that one still looks at
LONGEST = 200  # pixels along the longer side, above which single events are too small to be seen
BARS = 5  # classes in the GIF


def make_parser() -> ArgumentParser:
    parser = ArgumentParser('recipes/view_events.py', __doc__)
    add = parser.add_argument
    add('recording', type=Path, help='file of events')
    add('--kind', help='format, where the file does not tell, as timm_snn.data.read_events knows them')
    add('--order', help="of columns without names, as in 'xytp'")
    add('--time-unit', choices=('s', 'ms', 'us', 'ns'), help='of times in arrays, text and HDF5; default: us')
    add('--trial', type=int, help='show this trial, from 0, of a recording with a _labels.csv beside it')
    add('--start', type=float, metavar='MS', help='leave out what is earlier, in milliseconds since the first event')
    add('--end', type=float, metavar='MS', help='and what is not before this')
    add(
        '--region',
        type=int,
        nargs=4,
        metavar=('TOP', 'LEFT', 'H', 'W'),
        help='show, and let the model see, this part of the sensor only',
    )
    add('--window', type=float, metavar='MS', help='windows of so many milliseconds, each in --num-steps frames')
    add(
        '--sensor-size',
        type=positive_int,
        nargs=2,
        metavar=('H', 'W'),
        help="default: what the file says, the model's, 34 34 for .bin, 128 128 for .aedat, or what holds all events",
    )
    add('--num-steps', type=positive_int, help="T; default: the model's, 10 without one")
    add('--split-by', choices=('number', 'time'), help="frames of as many events, or as long; default: the model's, "
        'time with --window, and number')  # fmt: skip
    add('--frame-ms', type=positive_int, default=150, help='how long the GIF shows a frame')
    add('--model', help="'local-dir:FOLDER', 'hf-hub:USER/NAME', or a name that timm knows")
    add_pretrained(add)
    add('--size', type=positive_int, nargs=2, metavar=('H', 'W'), help="the model's input; default: what it says")
    add('--layers', nargs='+', help='names for the spike raster, as in a report; default: all')
    add('--output', type=Path, default=Path('output/events'))
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    model = open_model(args.model, pretrained=args.pretrained, num_steps=args.num_steps) if args.model else None
    with waiting(f'reading {args.recording}'):
        events = open_events(args)
    with one_line_errors(f'make frames of {args.recording}'):
        events, sensor_size = cut(events, sensor_size_of(args, events, model), args)
        settings = settings_of(args, model, sensor_size)
        windows = windows_of(events, settings, args.window)
        counts = np.concatenate([window.counts(settings, sensor_size) for window in windows])
    times = [title for window in windows for title in window.titles(settings, int(events.t.min()))]
    figures = {'frames.png': pictures.event_frames(counts, times, args.recording.name)}
    shown = enlarge(pictures.paint_events(counts))
    classes: list[dict[str, Any]] = []
    lines: list[str] = []
    if model is not None:
        busiest = max(windows, key=lambda window: len(window.events))
        with one_line_errors(f'make frames of {args.recording} for {args.model}'):
            frames = [window.frames(settings, sensor_size) for window in windows]
        with one_line_errors('make spike_raster.png'):
            seen = frames[windows.index(busiest)]
            figures['spike_raster.png'] = pictures.spike_raster(model, seen, args.layers)
        tell_silent(model, seen)
        if model.num_classes:
            names = descriptions_of(open_labels(model), model.num_classes)
            answers = torch.stack([probabilities_after_steps(model, of_window) for of_window in frames])
            for window, after_steps in zip(windows, answers, strict=True):
                found = likeliest(after_steps[-1], names)
                classes.append({'window': window.name or None, 'likeliest': dict(found)})
                told = ', '.join(f'{name} {p:.1%}' for name, p in found)
                lines.append(f'{window.name or "class"}: {told}')
            shown = with_bars(shown, [window.name for window in windows], answers, names)
    what = f'write to --output {args.output}'
    with one_line_errors(what), waiting(what):
        args.output.mkdir(parents=True, exist_ok=True)
        save_gif(shown, args.output / 'frames.gif', args.frame_ms)
        for name, figure in figures.items():
            with write_whole(args.output / name) as unfinished:
                figure.savefig(unfinished, format='png')
    parts = f'{len(windows)} windows of {settings.num_steps}' if args.window else str(settings.num_steps)
    files = ['frames.gif', *figures]
    give(
        {'events': len(events), 'classes': classes, 'files': [args.output / name for name in files]},
        *lines,
        f'{len(events):,} events of {args.recording} in {parts} frames: {", ".join(files)} in {args.output}',
    )


class Window(NamedTuple):
    """A window of the recording, or all of it, as T frames."""

    name: str  # '100 to 200 ms'; empty for all of it
    events: Events
    span: dict[str, int]  # start and end in microseconds, of a window

    def bins(self, settings: FrameSettings) -> dict[str, Any]:
        names = ('num_steps', 'split_by', 'bin_us', 'events_per_bin')
        return {name: getattr(settings, name) for name in names} | self.span

    def frames(self, settings: FrameSettings, sensor_size: tuple[int, int]) -> Tensor:
        """For the model."""
        return settings.frames(self.events, sensor_size, **self.span)

    def counts(self, settings: FrameSettings, sensor_size: tuple[int, int]) -> np.ndarray:
        """For the eye: both polarities, in so few pixels that one sees them."""
        pooled = -(-max(sensor_size) // LONGEST)
        size = (-(-sensor_size[0] // pooled), -(-sensor_size[1] // pooled))
        return to_frames(self.events, sensor_size=sensor_size, size=size, **self.bins(settings))

    def titles(self, settings: FrameSettings, origin: int) -> list[str]:
        """A title for each frame: its number, its time since `origin`, how many events it has."""
        events, borders = bin_events(self.events, **self.bins(settings))
        lines = []
        for step, (first, last) in enumerate(itertools.pairwise(borders), 1):
            t = (events.t[first:last] - origin) / 1000
            span = f'{t.min():.0f} to {t.max():.0f} ms' if len(t) else ''
            lines.append(f'{step}\n{span}\n{len(t):,} events')
        return lines


def open_events(args: argparse.Namespace) -> Events:
    """The recording, or the trial of it with that number."""
    with one_line_errors(f'read {args.recording}'):
        events = read_events(args.recording, **reading(args))
        if args.trial is None:
            return events
        trials = read_gesture_labels(args.recording.with_name(f'{args.recording.stem}_labels.csv'))
        if not 0 <= args.trial < len(trials):
            raise ValueError(f'--trial {args.trial} is not one of its {len(trials)} trials, 0 to {len(trials) - 1}')
        trial = trials[args.trial]
        events = crop_events(events, start=trial.start, end=trial.end)
        if not len(events):
            raise ValueError(f'it has no events in trial {args.trial}, from {trial.start} to {trial.end} us')
        return events


def reading(args: argparse.Namespace) -> dict[str, Any]:
    return dict(kind=args.kind, order=args.order, time_unit=args.time_unit)


def sensor_size_of(args: argparse.Namespace, events: Events, model: Any) -> tuple[int, int]:
    """What is given; else the first that holds all events of what the file says, the model's, and the format's."""
    if args.sensor_size:
        return tuple(args.sensor_size)
    least = (int(events.y.max()) + 1, int(events.x.max()) + 1)
    own = frame_settings(model).sensor_size if model is not None and has_frame_settings(model) else None
    said = recording_info(args.recording, **reading(args)).sensor_size
    for size in (said, own, SENSORS.get(args.recording.suffix.lower())):
        if size and size[0] >= least[0] and size[1] >= least[1]:
            return size
    return least


def cut(events: Events, sensor_size: tuple[int, int], args: argparse.Namespace) -> tuple[Events, tuple[int, int]]:
    """The part of the recording that is asked for, and its height and width."""
    origin = int(events.t.min())
    start, end = (None if ms is None else origin + round(ms * 1000) for ms in (args.start, args.end))
    if args.region:
        top, left, height, width = args.region
        if top + height > sensor_size[0] or left + width > sensor_size[1]:
            raise ValueError(f'--region {args.region} reaches beyond the {sensor_size[0]} x {sensor_size[1]} pixels')
        sensor_size = (height, width)
    events = crop_events(events, start=start, end=end, region=args.region and tuple(args.region))
    if not len(events):
        raise ValueError('there are no events between --start and --end in --region')
    return events, sensor_size


def settings_of(args: argparse.Namespace, model: Any, sensor_size: tuple[int, int]) -> FrameSettings:
    """How frames are made: as the model says, or as the options do."""
    given: dict[str, Any] = {'split_by': args.split_by} if args.split_by else {}
    if args.size:
        given['size'] = tuple(args.size)
    if model is None:
        by = args.split_by or ('time' if args.window else 'number')
        return FrameSettings(args.num_steps or 10, sensor_size, by)
    if has_frame_settings(model):
        return frame_settings(model, **given)
    return frame_settings(model, **{'sensor_size': sensor_size, 'size': sensor_size, 'mean': None, 'std': None} | given)


def windows_of(events: Events, settings: FrameSettings, milliseconds: float | None) -> list[Window]:
    if milliseconds is None:
        return [Window('', events, {})]
    length, most = round(milliseconds * 1000), MOST_FRAMES // settings.num_steps
    ordered = events[np.argsort(events.t, kind='stable')]
    origin = int(ordered.t[0])
    windows = [
        Window(
            f'{(start - origin) / 1e3:g} to {(start + length - origin) / 1e3:g} ms',
            part,
            dict(start=start, end=start + length),
        )
        for start, part in itertools.islice(iter_windows(ordered, length), most + 1)
    ]
    if len(windows) > most:
        raise ValueError(
            f'more than {most} windows of {settings.num_steps} frames are too many to look at: --start and --end take '
            'a part of the recording, and recipes/predict.py classifies all of it'
        )
    return windows


@torch.inference_mode()
def probabilities_after_steps(model: Any, frames: Tensor) -> Tensor:
    """[T, classes]: after t steps, those of the mean of the logits so far; of a model without steps all alike."""
    return running_logits(model, frames.unsqueeze(0))[0].softmax(-1).expand(len(frames), -1)


def likeliest(probabilities: Tensor, names: list[str]) -> list[tuple[str, float]]:
    """Three classes at most, with their probabilities."""
    values, classes = probabilities.topk(min(3, len(names)))
    return [(names[i], p) for p, i in zip(values.tolist(), classes.tolist(), strict=True)]


def tell_silent(model: Any, frames: Tensor) -> None:
    """Name the layers in which no neuron fires: what follows them does not depend on the recording."""
    layers = profile(model, frames.unsqueeze(0), progress=False).layers
    if silent := [layer.name for layer in layers if layer.firing_rate == 0]:
        say(f'silent: no neuron fires in {", ".join(silent)}')


def enlarge(images: np.ndarray) -> list[Image.Image]:
    """In whole pixels, of at least 256 in all."""
    scale = -(-256 // max(images.shape[1:3]))
    height, width = (scale * side for side in images.shape[1:3])
    return [Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST) for image in images]


def with_bars(images: list[Image.Image], windows: list[str], answers: Tensor, names: list[str]) -> list[Image.Image]:
    """Beside each image the probabilities, [windows, T, classes], of the classes that are likeliest at any time."""
    font = ImageFont.truetype(findfont('DejaVu Sans'), 12)
    classes = answers.amax((0, 1)).topk(min(BARS, len(names))).indices.tolist()
    T = answers.shape[1]
    left, row, full = images[0].width + 12, 32, 180
    size = (left + full + 12, max(images[0].height, 28 + row * len(classes)))
    canvases = []
    for number, image in enumerate(images):
        canvas = Image.new('RGB', size, 'white')
        canvas.paste(image)
        draw = ImageDraw.Draw(canvas)
        window, step = divmod(number, T)
        draw.text((left, 4), f'{windows[window]} step {step + 1} of {T}'.strip(), 'black', font)
        for place, index in enumerate(classes):
            p, top = float(answers[window, step, index]), 28 + row * place
            draw.text((left, top), f'{names[index][:18]} {p:.0%}', 'black', font)
            draw.rectangle((left, top + 17, left + max(1, round(full * p)), top + 25), '#1f2430')
        canvases.append(canvas)
    return canvases


def save_gif(images: list[Image.Image], path: Path, frame_ms: int) -> None:
    """Each frame for `frame_ms`."""
    with write_whole(path) as unfinished:
        images[0].save(unfinished, 'GIF', save_all=True, append_images=images[1:], duration=frame_ms, loop=0)


if __name__ == '__main__':
    main()
