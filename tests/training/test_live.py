"""`timm-snn live`: a recording as a camera plays it, on a clock of the test's own."""

import math

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

import timm_snn
from tests.conftest import lively
from tests.support import writers
from timm_snn.data import FrameSettings, frame_settings, iter_frames, set_frame_settings
from timm_snn.data.windows import NO_EVENTS
from timm_snn.training import live


class Clock:
    """Stands still but for what is told to take time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def played(milliseconds: list[float], speed: float = 1.0) -> list[live.Bin]:
    """Bins of 10 ms whose answers take so long."""
    clock = Clock()

    def answer(start, events):
        clock.sleep(milliseconds[start // 10_000] / 1000)
        return start // 10_000, 0.5

    windows = [(10_000 * i, NO_EVENTS) for i in range(len(milliseconds))]
    return list(live.play(windows, 10_000, answer, speed, clock, clock.sleep))


def answered(bins: list[live.Bin]) -> list[int]:
    return [each.start // 10_000 for each in bins if each.answer]


def test_a_fast_model_answers_every_bin_and_waits_for_the_next():
    bins = played([3, 9, 1, 4])
    assert answered(bins) == [0, 1, 2, 3]
    assert [1000 * each.latency for each in bins] == pytest.approx([3, 9, 1, 4])


def test_a_slow_answer_is_late_and_makes_the_next_ones_drop():
    bins = played(
        [35, 1, 1, 1, 1, 1]
    )  # bin 0 is over at 10 ms and answered at 45 ms: bins 1 and 2 were over at 20 and 30
    assert answered(bins) == [0, 3, 4, 5]
    latencies = [1000 * each.latency for each in bins if each.answer]
    assert latencies == pytest.approx([35, 6, 1, 1])
    text = live.summary(bins, 10_000, 1.0, 0.06)
    assert text.startswith('6 bins of 10 ms, 0.06 s of the recording, in 0.06 s: latency median 3.50 ms, p95 30.65 ms')
    assert '2 bins (33.3%) dropped' in text


def test_a_lag_of_less_than_a_bin_is_made_up_for():
    bins = played([19, 6, 6, 6])
    assert answered(bins) == [0, 1, 2, 3]
    assert [1000 * each.latency for each in bins] == pytest.approx([19, 15, 11, 7])


def test_speed_shortens_bins_and_zero_drops_none():
    assert answered(played([6, 6, 6, 6], speed=2)) == [0, 1, 2, 3]
    assert len(answered(played([6] * 20, speed=2))) < 20
    bins = played([35, 20, 50], speed=0)
    assert answered(bins) == [0, 1, 2] and [1000 * each.latency for each in bins] == pytest.approx([35, 20, 50])
    assert 'dropped' not in live.summary(bins, 10_000, 0.0, 0.1)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    net = lively(timm.create_model('msvit_4_96', in_chans=2, num_steps=3))
    set_frame_settings(net, FrameSettings(3, (34, 34), split_by='number', std=(2.0, 2.0)))
    folder = tmp_path_factory.mktemp('model')
    save_for_hf(net, folder, model_config=dict(label_names=list('abcdefghij')), safe_serialization=True)
    return f'local-dir:{folder}'


@pytest.fixture
def recording(tmp_path):
    return writers.nmnist(tmp_path / 'one.bin', writers.random_events(900, 34, last=95_000))


def run(*arguments: object) -> None:
    live.main([str(argument) for argument in arguments])


def test_the_answers_are_those_of_the_stream(model, recording, capsys):
    run('--source', recording, '--model', model, '--speed', 0, '--every', 1, '--tau', 'inf')
    *lines, last = capsys.readouterr().out.splitlines()
    net = timm_snn.fuse(timm.create_model(model, pretrained=True).eval())
    stream, settings = timm_snn.stream(net), frame_settings(net)
    windows = list(iter_frames(recording, window=10_000, sensor_size=(34, 34)))
    assert len(lines) == len(windows) == 10 and last.startswith('10 bins of 10 ms, 0.10 s of the recording')
    for i, (text, (_, counts)) in enumerate(zip(lines, windows, strict=True)):
        probabilities = stream(settings.normalize(torch.from_numpy(counts))).softmax(1)[0]
        words = text.split()
        assert words[0] == f'{i / 100:.2f}' and words[2] == 'abcdefghij'[int(probabilities.argmax())]
        assert float(words[3].rstrip('%')) == pytest.approx(100 * float(probabilities.max()), abs=0.06)


def test_a_sensor_of_twice_the_size_and_longer_bins(model, recording, tmp_path, capsys):
    events = writers.random_events(900, 68, last=95_000)
    np.savez(tmp_path / 'big.npz', **events._asdict())
    run('--source', tmp_path / 'big.npz', '--model', model, '--speed', 0, '--sensor-size', 68, 68, '--bin-ms', 25)
    assert '4 bins of 25 ms' in capsys.readouterr().out


def test_ctrl_c_ends_with_a_summary(model, recording, capsys, monkeypatch):
    answer, calls = live.Classifier.__call__, []

    def interrupted(self, start, events):
        calls.append(start)
        if len(calls) == 6:  # three passes to warm up, then two bins
            raise KeyboardInterrupt
        return answer(self, start, events)

    monkeypatch.setattr(live.Classifier, '__call__', interrupted)
    run('--source', recording, '--model', model, '--speed', 0)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].startswith('2 bins of 10 ms') and printed.err.endswith('stopped\n')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--source', 'nowhere.raw'], 'cannot play nowhere.raw: .*nowhere.raw'),
        (['--source', __file__, '--speed', '-1'], 'argument --speed: -1 is not 0 or more'),
        (['--source', __file__, '--tau', '0.5'], 'argument --tau: 0.5 is less than 1'),
        (['--source', __file__], r'cannot play .*test_live\.py'),
    ],
)
def test_mistakes_end_in_one_line(model, arguments, message):
    with pytest.raises(SystemExit, match=message) as stop:
        run('--model', model, *arguments)
    assert '\n' not in str(stop.value)


def test_a_model_that_cannot_be_streamed_says_why(recording):
    arguments = ['--model', 'msvit_4_96', '--model-kwargs', 'in_chans=2', 'attn=statten', '--sensor-size', 34, 34]
    with pytest.raises(SystemExit, match=r'cannot stream this MSViT: .* sees 2 steps at once'):
        run('--source', recording, *arguments)


def test_a_model_of_numbers_that_are_not_finite_is_told(model, recording, monkeypatch):
    monkeypatch.setattr(FrameSettings, 'normalize', lambda self, counts: counts * math.nan)
    with pytest.raises(SystemExit, match='numbers that are not finite'):
        run('--source', recording, '--model', model, '--speed', 0)
