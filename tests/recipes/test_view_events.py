"""recipes/view_events.py as users run it."""

from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

from tests.conftest import lively
from tests.support import scripts, writers
from timm_snn.data import Events

pytest.importorskip('matplotlib')

# by number in two steps: a pixel with two positive and one with two negative events, then one with two of both
EVENTS = Events(
    np.arange(8, dtype=np.int64) * 1000,
    np.array([0, 0, 5, 5, 9, 9, 9, 9], np.int16),
    np.array([0, 0, 2, 2, 4, 4, 4, 4], np.int16),
    np.array([1, 1, 0, 0, 1, 0, 1, 0], np.uint8),
)


@pytest.fixture
def run(capsys):
    def run_it(*arguments: object) -> str:
        scripts.run('recipes/view_events.py', *arguments)
        return capsys.readouterr().out

    return run_it


@pytest.fixture(scope='module')
def recording(tmp_path_factory) -> Path:
    return writers.nmnist(tmp_path_factory.mktemp('events') / 'seven.bin', writers.random_events(900, 34))


def test_the_gif_shows_every_frame_in_red_and_blue(run, tmp_path):
    file = writers.nmnist(tmp_path / 'some.bin', EVENTS)
    out = run(file, '--num-steps', 2, '--frame-ms', 70, '--output', tmp_path / 'out')
    assert f'8 events of {file} in 2 frames: frames.gif, frames.png in ' in out
    gif = Image.open(tmp_path / 'out' / 'frames.gif')
    assert (gif.n_frames, gif.size, gif.info['duration']) == (2, (272, 272), 70)  # 34 pixels, each of 8 x 8
    red, blue, dark, white = (255, 0, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)
    for frame, colors in enumerate(((red, blue, white), (white, white, dark))):
        gif.seek(frame)
        image = np.array(gif.convert('RGB'))[4::8, 4::8]
        assert [tuple(image[y, x]) for y, x in ((0, 0), (2, 5), (4, 9))] == list(colors)
        assert (image != 255).any(-1).sum() == sum(color != white for color in colors)
    strip = Image.open(tmp_path / 'out' / 'frames.png').convert('RGB')
    assert {red, blue, dark, white} <= {color for _, color in strip.getcolors(10**6)}


def test_a_saved_model_says_how_many_frames_and_shows_its_spikes(run, recording, tmp_path):
    model = lively(timm.create_model('msvit_4_96', in_chans=2, num_classes=10, num_steps=3))
    save_for_hf(model, tmp_path / 'model', safe_serialization=True)
    name = f'local-dir:{tmp_path / "model"}'
    out = run(recording, '--model', name, '--output', tmp_path / 'out')
    assert 'in 3 frames: frames.gif, frames.png, spike_raster.png' in out
    assert Image.open(tmp_path / 'out' / 'frames.gif').n_frames == 3
    arguments = ('--size', 17, 20, '--num-steps', 2, '--split-by', 'time', '--layers', 'stem.units.0')
    assert 'in 2 frames' in run(recording, '--model', name, *arguments, '--output', tmp_path / 'one')
    all_layers, one = (Image.open(tmp_path / folder / 'spike_raster.png') for folder in ('out', 'one'))
    assert all_layers.size[1] > 3 * one.size[1] > 300


def test_one_trial_of_a_gesture_recording(run, tmp_path):
    events = writers.random_events(1000)
    file = writers.aedat3(tmp_path / 'user.aedat', events)
    rows = ['class,startTime_usec,endTime_usec', '5,0,100000', '3,100000,250000', '1,900000,950000']
    (tmp_path / 'user_labels.csv').write_text('\n'.join(rows))
    number = int(((events.t >= 100_000) & (events.t < 250_000)).sum())
    assert f'{number} events of ' in run(file, '--trial', 1, '--output', tmp_path / 'out')
    assert Image.open(tmp_path / 'out' / 'frames.gif').size == (256, 256)
    for trial, message in ((3, 'not one of its 3 trials, 0 to 2'), (2, 'no events in trial 2, from 900000 to 950000')):
        with pytest.raises(SystemExit, match=f'error: cannot read .*{message}'):
            run(file, '--trial', trial, '--output', tmp_path / 'none')


def test_steps_without_events_are_shown_empty(run, tmp_path):
    file = tmp_path / 'few.npz'
    np.savez(file, **{name: array[:3] for name, array in EVENTS._asdict().items()})
    run(file, '--num-steps', 5, '--sensor-size', 40, 300, '--output', tmp_path)
    gif = Image.open(tmp_path / 'frames.gif')
    assert (gif.n_frames, gif.size, gif.info['duration']) == (2, (300, 40), 4 * 150)  # the four empty ones are alike


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.bin'], 'cannot read none.bin'),
        (['README.md'], 'cannot read README.md: .*expected a suffix'),
        (['RECORDING', '--kind', 'aedat3'], 'cannot read .*seven.bin'),
        (['RECORDING', '--trial', '0'], 'cannot read .*seven_labels.csv'),
        (['RECORDING', '--sensor-size', '20', '34'], r'cannot make frames of .*not one of 0 to 19'),
        (['RECORDING', '--num-steps', '0'], '0 is less than 1'),
        (['RECORDING', '--split-by', 'size'], 'invalid choice'),
        (['RECORDING', '--model', 'msvit_nope'], "cannot create model 'msvit_nope'"),
        (['RECORDING', '--model', 'msvit_2_256', '--layers', 'x'], 'cannot make spike_raster.png: no neurons called'),
        (['RECORDING', '--model', 'msvit_4_96'], 'cannot make spike_raster.png: channels must be 2'),
        (['RECORDING', '--output', 'RECORDING/x'], 'cannot write to --output'),
        ([], 'required: recording'),
    ],
)
def test_mistakes_are_one_line(run, recording, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path('README.md').write_text('not events')
    arguments = [argument.replace('RECORDING', str(recording)) for argument in arguments]
    with pytest.raises(SystemExit, match=f'error: .*{message}') as error:
        run(*arguments)
    assert '\n' not in str(error.value)
