"""Classify a recording as a camera would give it, one bin after the other, with every membrane carried.

    timm-snn live --source drive.raw --model local-dir:output/gestures/model
    timm-snn live --source drive.raw --model local-dir:output/gestures/model --bin-ms 20 --speed 0

At real speed a bin is there when its time is over. The latency of an answer counts from then on, and has all that
happens: the frame is made of the events, the model sees it. A model that is not done with a bin when the next one is
over has missed that: bins that are over before the model could begin with them are dropped, and counted. Ctrl-C ends
with a summary.

Frames are made as the model says, but for the bins, which are of fixed duration here. The answer is a mean of all
outputs that forgets within --tau bins.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import timm_snn

from ..data import Events, FrameSettings, iter_events, iter_windows, recording_info
from ..data.windows import NO_EVENTS
from ..files import printable
from .console import give, note, say
from .errors import UserError, one_line_errors, script
from .labels import descriptions_of, open_labels
from .models import fused, open_model, steps_of
from .options import (
    ArgumentParser,
    add_camera_options,
    at_least_one,
    image_options,
    model_options,
    model_parser,
    not_negative,
    positive,
    positive_int,
    recordings,
)
from .recordings import settings_for

__all__ = ['Bin', 'main', 'play']

CHUNK_EVENTS = 50_000  # read at once: decoding them takes less than a millisecond
DEFAULT_BIN_US = 10_000


class Bin(NamedTuple):
    """What became of the events with start <= t < start + window, in microseconds."""

    start: int
    answer: tuple[int, float] | None  # (class, probability); None if the bin was dropped
    latency: float  # seconds from when the bin was over to the answer


def play(
    windows: Iterable[tuple[int, Events]],
    window: int,
    answer: Callable[[int, Events], tuple[int, float]],
    speed: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Bin]:
    """Answer to every bin of `window` microseconds when it is over, or drop it if the one behind it is over too.

    `speed` 2 plays twice as fast as the camera was; with 0 a bin is over when the one before has its answer.
    """
    begin, first = 0.0, None
    for start, events in windows:
        if first is None:
            begin, first = clock(), start
        over = begin + (start + window - first) / 1e6 / speed if speed else clock()
        wait = over - clock()
        if wait > 0:
            sleep(wait)
        elif speed and -wait >= window / 1e6 / speed:
            yield Bin(start, None, -wait)
            continue
        found = answer(start, events)
        yield Bin(start, found, clock() - over)


class Classifier:
    """Answers to bins of events, one after the other."""

    def __init__(
        self, model: Any, settings: FrameSettings, window: int, sensor_size: tuple[int, int], tau: float
    ) -> None:
        self.stream = timm_snn.stream(model, tau=tau)
        self.settings = replace(settings, num_steps=1, split_by='time', bin_us=window, events_per_bin=None)
        self.window, self.sensor_size = window, settings.check_sensor(sensor_size)
        self.device = next(model.parameters()).device

    def __call__(self, start: int, events: Events) -> tuple[int, float]:
        frame = self.settings.frames(events, self.sensor_size, start=start, end=start + self.window).to(self.device)
        probability, number = self.stream(frame)[0].float().softmax(0).max(0)
        if not math.isfinite(probability):
            raise ValueError(f'the model answers the bin at {start} us with numbers that are not finite')
        return int(number), float(probability)

    def warm_up(self) -> None:
        """The first passes build and choose kernels."""
        for _ in range(3):
            self(0, NO_EVENTS)
        self.stream.reset()


def summary(bins: list[Bin], window: int, speed: float, seconds: float) -> str:
    """What is said in the end."""
    latencies = [1000 * each.latency for each in bins if each.answer]
    if not latencies:
        return f'{len(bins)} bins and no answer'
    median, late = np.percentile(latencies, [50, 95])
    dropped = len(bins) - len(latencies)
    played = len(bins) * window / 1e6
    text = (
        f'{len(bins)} bins of {window / 1000:g} ms, {played:.2f} s of the recording, in {seconds:.2f} s: latency '
        f'median {median:.2f} ms, p95 {late:.2f} ms'
    )
    if dropped:
        text += (
            f'; {dropped} bins ({dropped / len(bins):.1%}) dropped, which the model has not seen: it is slower than '
            'they come, and --bin-ms makes them longer'
        )
    elif speed:
        text += '; none dropped'
    return text


def make_parser() -> ArgumentParser:
    parser = model_parser('timm-snn live', __doc__, batches=False)
    add = parser.add_argument_group('camera').add_argument
    add('--source', type=Path, required=True, metavar='FILE', help='a recording, which plays as a camera')
    add('--speed', type=not_negative, default=1.0, help='times as fast as it was; 0 is as fast as possible')
    add_camera_options(add)
    add('--bin-ms', type=positive, metavar='MS', help="default: the model's bins if they last as long, else 10")
    add('--tau', type=at_least_one, help="bins within which the answer forgets, inf for never; default: the model's T")
    add('--every', type=positive_int, default=10, metavar='N', help='a line for every Nth bin')
    add('--labels', type=Path, help='names of the classes, one in each line; default: those saved with the model')
    return parser


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    model = fused(open_model(args.model, **model_options(args)), args.model)
    names = descriptions_of(open_labels(model, args.labels), model.num_classes)
    source = recordings(args)
    settings, _ = settings_for(model, source, **image_options(args))
    window = settings.bin_us or DEFAULT_BIN_US
    reading = source.reading or {}
    with one_line_errors(f'play {args.source}'):
        found = recording_info(args.source, **reading).sensor_size
        sensor_size = source.sensor_size or found or settings.sensor_size
        tau = steps_of(model) if args.tau is None else args.tau
        classify = Classifier(model, settings, window, sensor_size, tau)
        classify.warm_up()
        windows = iter_windows(iter_events(args.source, chunk_events=CHUNK_EVENTS, **reading), window)

    bins: list[Bin] = []
    begin = time.perf_counter()
    try:
        with one_line_errors(f'play {args.source}'):
            for each in play(windows, window, classify, args.speed):
                bins.append(each)
                if each.answer and (len(bins) - 1) % args.every == 0:
                    say(line(each, bins[0].start, names))
    except KeyboardInterrupt:
        note('stopped')
    if not bins:
        raise UserError(f'{args.source} ended before its first bin')
    answers = [dict(start_us=each.start, answer=described(each, names), latency_s=each.latency) for each in bins]
    give({'bin_us': window, 'bins': answers}, summary(bins, window, args.speed, time.perf_counter() - begin))


def described(answered: Bin, names: list[str]) -> dict[str, Any] | None:
    """None if the bin was dropped."""
    if answered.answer is None:
        return None
    number, probability = answered.answer
    return {'class': number, 'name': names[number], 'probability': probability}


def line(answered: Bin, first: int, names: list[str]) -> str:
    number, probability = answered.answer or (0, 0.0)
    seconds = (answered.start - first) / 1e6
    return f'{seconds:8.2f} s  {printable(names[number], 40)}  {probability:.1%}  {1000 * answered.latency:.2f} ms'


if __name__ == '__main__':
    main()
