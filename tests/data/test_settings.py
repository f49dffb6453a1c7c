"""How frames are made travels with the model, and turns events into its input."""

import json

import pytest
import timm
import torch

import timm_snn
from tests.support import writers
from timm_snn.data import FrameSettings, frame_settings, has_frame_settings, set_frame_settings, to_frames
from timm_snn.models import save_for_hf

SETTINGS = FrameSettings(3, (34, 34), split_by='time', size=(16, 16), mean=(0.5, 0.25), std=(2, 4))


def small(**arguments):
    return timm.create_model('msvit_4_96', **{'in_chans': 2, 'num_steps': 3, 'depths': (0, 0, 1)} | arguments)


@pytest.fixture
def folder(tmp_path):
    """A saved model for events."""
    model = small()
    set_frame_settings(model, SETTINGS)
    save_for_hf(model, tmp_path)
    return tmp_path


def damage(folder, **settings):
    file = folder / 'config.json'
    config = json.loads(file.read_text())
    config['pretrained_cfg']['frames'] |= settings
    file.write_text(json.dumps(config))


@pytest.mark.parametrize('wrap', [lambda m: m, timm_snn.fuse, lambda m: torch.compile(m, backend='eager')])
def test_a_saved_model_brings_its_settings_along(folder, wrap):
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert frame_settings(wrap(model)) == SETTINGS
    save_for_hf(model, folder / 'again')
    assert frame_settings(timm.create_model(f'local-dir:{folder / "again"}')) == SETTINGS


def test_frames_are_the_counts_resized_and_normalised():
    events = writers.random_events(500, size=34)
    counts = torch.from_numpy(to_frames(events, 3, sensor_size=(34, 34), split_by='time', size=16))
    frames = SETTINGS.frames(events)
    assert torch.equal(frames[:, 0], (counts[:, 0] - 0.5) / 2)
    assert torch.equal(frames[:, 1], (counts[:, 1] - 0.25) / 4)


def test_the_number_of_steps_is_the_models(folder):
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, num_steps=5)
    assert frame_settings(model).num_steps == 5
    model.num_steps = 2
    assert frame_settings(model).frames(writers.random_events(500, size=34)).shape == (2, 2, 16, 16)


def test_another_sensor_is_resized_or_refused():
    larger = writers.random_events(500, size=68)
    plain = FrameSettings(3, (34, 34))
    assert plain.frames(larger, (68, 68)).sum() == 500
    with pytest.raises(ValueError, match=r'not one of 0 to 33: sensor_size \(height, width\) is \(34, 34\)'):
        plain.frames(larger)
    with pytest.raises(
        ValueError, match=r'720 x 1280 pixels has another shape than the 34 x 34 .* crop the .* 720 x 720'
    ):
        plain.frames(larger, (720, 1280))
    assert FrameSettings(3, (260, 346)).check_sensor((480, 640)) == (480, 640)


def test_models_without_settings_say_so_and_take_them():
    model = small()
    assert not has_frame_settings(model)
    with pytest.raises(ValueError, match=r'does not say how its frames are made: .* pass sensor_size'):
        frame_settings(model)
    assert model.pretrained_cfg['mean'] == (0.286,)  # of images of clothes
    assert frame_settings(model, sensor_size=(34, 34)) == FrameSettings(3, (34, 34), size=(28, 28))
    model.pretrained_cfg.update(mean=(0.5, 0.25), source='local-dir')
    assert frame_settings(model, sensor_size=(34, 34)).mean == (0.5, 0.25)


def test_an_untrained_model_does_not_take_the_frames_of_its_default_tag():
    assert not has_frame_settings(timm.create_model('msvit_2_256'))


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ({'split_by': 'luck'}, "split_by must be 'number' or 'time', not 'luck'"),
        ({'sensor_size': [0, 34]}, r'sensor_size must be \(height, width\)'),
        ({'size': [10**6, 10**6]}, 'expected frames of at most'),
        ({'mean': ['a', 1]}, 'could not convert'),
        ({'std': [0, 1]}, 'std must not be 0'),
        ({'channels': 3}, 'takes 2 channels, and its frames have 3'),
        ({'surprise': 1}, 'surprise'),
        ({'channels': []}, 'channels must be 2'),
    ],
)
def test_wrong_settings_are_one_line(folder, setting, message):
    damage(folder, mean=None, std=None, **setting) if 'channels' in setting else damage(folder, **setting)
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    with pytest.raises(ValueError, match=message) as caught:
        frame_settings(model)
    assert '\n' not in str(caught.value)


def test_bins_may_be_of_seconds_and_of_millions_of_events(folder):
    damage(folder, bin_us=3_600_000_000)
    assert frame_settings(timm.create_model(f'local-dir:{folder}')).bin_us == 3_600_000_000


def test_settings_that_are_no_mapping_are_refused_where_the_model_is_made(folder):
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg']['frames'] = [1, 2]
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='expected the settings of event frames by name'):
        timm.create_model(f'local-dir:{folder}')


def test_a_model_of_events_refuses_a_recording_without_a_batch(folder):
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    frames = torch.rand(3, 2, 16, 16)
    for run in (model, timm_snn.fuse(model), model.forward_steps, model.forward_features):
        with pytest.raises(ValueError, match=r'one recording without a batch: pass x\.unsqueeze\(0\); or a batch of'):
            run(frames)
    stills = frames.unsqueeze(1).expand(-1, 3, -1, -1, -1)
    torch.testing.assert_close(torch.compile(model, backend='eager', fullgraph=True)(stills), model(stills))
    assert model(frames[:2]).shape == (2, 10)  # a batch of still images, and no recording of three steps


def test_a_model_of_images_takes_as_many_as_it_has_steps():
    assert small().eval()(torch.rand(3, 2, 16, 16)).shape == (3, 10)


def test_tags_of_event_data_say_how_frames_are_made():
    model = timm.create_model('spikingresformer_gesture.dvs128_gesture', num_steps=5)
    expected = FrameSettings(5, (128, 128), channels=3, size=(64, 64))
    assert frame_settings(model) == expected


def test_bins_of_fixed_duration_stay_so_for_any_number_of_steps():
    events = writers.random_events(500, size=34)
    settings = FrameSettings(3, (34, 34), bin_us=10_000)
    assert settings.split_by == 'time' and 'events_per_bin' not in settings.to_dict()
    longer = FrameSettings(5, (34, 34), bin_us=10_000)
    assert torch.equal(settings.frames(events), longer.frames(events)[:3])
    with pytest.raises(ValueError, match=r"bin_us makes bins by time: leave out .* split_by='number'"):
        FrameSettings(3, (34, 34), split_by='number', bin_us=10_000)
