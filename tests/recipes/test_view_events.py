"""recipes/view_events.py as users run it."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from tests.conftest import lively
from tests.support import scripts, writers
from timm_snn.data import EventDigits, Events, FrameSettings, set_frame_settings

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


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
    """Saved with names of its classes, without settings of frames."""
    model = lively(timm.create_model('msvit_4_96', in_chans=2, num_classes=3, num_steps=2))
    folder = tmp_path_factory.mktemp('named') / 'model'
    save_for_hf(model, folder, model_config=dict(label_names=['left', 'right', 'ahead']), safe_serialization=True)
    return f'local-dir:{folder}'


def test_the_classes_of_every_window_are_printed_and_played(run, recording, model, tmp_path):
    out = run(recording, '--model', model, '--window', 100, '--output', tmp_path)
    lines = [line for line in out.splitlines() if ' ms: ' in line]
    assert [line.split(':')[0] for line in lines] == ['0 to 100 ms', '100 to 200 ms', '200 to 300 ms']
    for line in lines:
        shares = dict(answer.rsplit(' ', 1) for answer in line.split(': ')[1].split(', '))
        assert shares.keys() == {'left', 'right', 'ahead'}
        assert sum(float(share.rstrip('%')) for share in shares.values()) == pytest.approx(100, abs=0.2)
    assert 'in 3 windows of 2 frames' in out
    gif = Image.open(tmp_path / 'frames.gif')
    assert gif.n_frames == 6 and gif.size[0] > gif.size[1] == 272


def test_the_weights_of_a_tag(run, tmp_path):
    events = EventDigits(train=False).recording(0)
    np.savez(tmp_path / 'seven.npz', **{name: getattr(events, name) for name in 'txyp'})
    arguments = ('--model', 'msvit_4_96.event_digits', '--layers', 'stem.units.0')
    assert 'class: 7 9' in run(tmp_path / 'seven.npz', *arguments, '--output', tmp_path / 'out')


def test_probabilities_in_the_gif_are_those_of_the_first_steps():
    view_events = scripts.load('recipes/view_events.py')
    model = lively(timm.create_model('msvit_4_96', in_chans=2, num_classes=3, num_steps=4)).eval()
    frames = torch.rand(4, 2, 34, 34)
    answers = view_events.probabilities_after_steps(model, frames)
    for steps in (1, 3, 4):
        model.num_steps = steps
        expected = model(frames[None, :steps]).softmax(1)[0]
        torch.testing.assert_close(answers[steps - 1], expected)
    names = ['left', 'right', 'ahead']
    sure = torch.tensor([[[0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]])  # the bar of the first step is twice as long
    images = view_events.with_bars([Image.new('RGB', (50, 50))] * 2, [''], sure, names)
    longest = [(np.array(image)[:, 60:] < 60).all(-1).sum(1).max() for image in images]
    assert longest[0] == pytest.approx(2 * longest[1], abs=2)


def test_layers_without_spikes_are_called_silent(run, recording, tmp_path):
    network = lively(timm.create_model('msvit_4_96', in_chans=2, num_classes=3, num_steps=2))
    with torch.no_grad():
        network.stages[-1].blocks[-1].mlp.fc1.bn.weight.zero_()
        network.stages[-1].blocks[-1].mlp.fc1.bn.bias.fill_(-1)
    save_for_hf(network, tmp_path / 'model', safe_serialization=True)
    out = run(recording, '--model', f'local-dir:{tmp_path / "model"}', '--output', tmp_path)
    silent = next(line for line in out.splitlines() if line.startswith('silent: no neuron fires in '))
    assert 'mlp.fc1' in silent


def test_frames_are_made_as_the_model_says(run, tmp_path):
    network = lively(timm.create_model('msvit_4_96', in_chans=3, num_classes=3, num_steps=2))
    set_frame_settings(network, FrameSettings(2, (68, 68), 'time', channels=3, size=(34, 34)))
    save_for_hf(network, tmp_path / 'model', safe_serialization=True)
    file = writers.npy(tmp_path / 'events.npy', writers.random_events(500, size=60))
    out = run(file, '--model', f'local-dir:{tmp_path / "model"}', '--output', tmp_path)
    assert 'class: ' in out and 'in 2 frames' in out
    arguments = (file, '--model', f'local-dir:{tmp_path / "model"}', '--sensor-size', 60, 90, '--output', tmp_path)
    with pytest.raises(SystemExit, match='60 x 90 pixels has another shape than the 68 x 68'):
        run(*arguments)
    assert 'class: ' in run(*arguments, '--region', 0, 10, 60, 60)


def test_a_large_sensor_is_pooled_and_a_region_cut_out(run, tmp_path):
    random = np.random.default_rng(0)
    y, x = (random.integers(low, low + 30, 900).astype(np.int16) for low in (100, 200))
    events = writers.random_events(900)._replace(x=x, y=y)
    file = writers.evt2(tmp_path / 'vga.raw', events, size=640)
    run(file, '--num-steps', 2, '--output', tmp_path)
    image = Image.open(tmp_path / 'frames.gif')
    assert image.size == (320, 320)
    inked = np.argwhere((np.array(image.convert('RGB')) != 255).any(-1))
    assert inked.min(0).tolist() == [50, 100] and inked.max(0).tolist() == [65, 115]  # 4 pixels in 2 x 2
    out = run(file, '--num-steps', 2, '--region', 100, 200, 30, 40, '--start', 100, '--end', 200, '--output', tmp_path)
    part = ((events.t - events.t[0] >= 100_000) & (events.t - events.t[0] < 200_000)).sum()
    assert f'{part} events of ' in out
    assert Image.open(tmp_path / 'frames.gif').size == (280, 210)


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
        (['README.md'], 'cannot read README.md: .*expected'),
        (['RECORDING', '--kind', 'aedat3'], 'cannot read .*seven.bin'),
        (['RECORDING', '--trial', '0'], 'cannot read .*seven_labels.csv'),
        (['RECORDING', '--sensor-size', '20', '34'], r'cannot make frames of .*not one of 0 to 19'),
        (['RECORDING', '--num-steps', '0'], '0 is less than 1'),
        (['RECORDING', '--split-by', 'size'], 'invalid choice'),
        (['RECORDING', '--model', 'msvit_nope'], "cannot create model 'msvit_nope'"),
        (['RECORDING', '--model', 'msvit_2_256', '--layers', 'x'], 'cannot make spike_raster.png: no neurons called'),
        (['RECORDING', '--model', 'msvit_4_96'], 'cannot make frames of .*channels must be 2'),
        (['RECORDING', '--region', '0', '0', '30', '40'], r'reaches beyond the 34 x 34 pixels'),
        (['RECORDING', '--start', '5000'], r'no events between --start and --end'),
        (['RECORDING', '--window', '1'], r'more than 20 windows of 10 frames are too many to look at: --start'),
        (['RECORDING', '--window', '0'], r'window must be at least 1 us'),
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
