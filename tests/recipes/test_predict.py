"""recipes/predict.py as users run it: on real digits, in every kind of file, and on what is no picture."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_input_data_config
from timm.models import save_for_hf

from tests.conftest import lively
from tests.support import writers
from tests.support.scripts import ROOT, run
from timm_snn.data import Events, FrameSettings, frame_settings, set_frame_settings

pytest.importorskip('rich')
load_digits = pytest.importorskip('sklearn.datasets').load_digits

RECIPES = ROOT / 'recipes'
NAMES = [f'digit [red]{i}' for i in range(10)]  # in brackets is markup to rich


@pytest.fixture
def predict(capsys):
    """Run the script in this process; returns what it printed."""

    def run_it(*arguments: object) -> str:
        run('recipes/predict.py', *arguments)
        return capsys.readouterr().out

    return run_it


def save(folder: Path, name: str, **kwargs: object) -> str:
    torch.manual_seed(0)
    model = lively(timm.create_model(name, **kwargs))
    save_for_hf(model, folder, model_config=dict(label_names=NAMES), safe_serialization=True)
    return f'local-dir:{folder}'


@pytest.fixture(scope='module')
def gray(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp('gray'), 'msvit_4_96')


@pytest.fixture(scope='module')
def rgb(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp('rgb'), 'msvit_4_96', in_chans=3)


@pytest.fixture(scope='module')
def digits() -> list[Image.Image]:
    images, _ = load_digits(return_X_y=True)
    return [Image.fromarray((image.reshape(8, 8) * 15).astype('uint8')) for image in images[:5]]


@pytest.fixture
def folder(digits, tmp_path) -> Path:
    """pictures/0.png to 3.png and pictures/below/4.PNG."""
    for i, image in enumerate(digits):
        path = tmp_path / 'pictures' / (f'{i}.png' if i < 4 else 'below/4.PNG')
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / 'pictures'


def expected(model_name: str, images: list[Image.Image]) -> torch.Tensor:
    model = timm.create_model(model_name, pretrained=True).eval()
    transform = create_transform(**resolve_input_data_config(model))
    with torch.inference_mode():
        return model(torch.stack([transform(image) for image in images])).softmax(1)


def test_a_folder_gives_the_models_own_probabilities(predict, gray, digits, folder, tmp_path):
    """5 pictures in batches of 2."""
    out = predict('--model', gray, folder, '--topk', 3, '-b', 2, '--output', tmp_path / 'new' / 'out.csv')
    rows = {Path(row['file']).stem: row for row in csv.DictReader((tmp_path / 'new' / 'out.csv').open())}
    values, classes = expected(gray, digits).topk(3)
    assert sorted(rows) == ['0', '1', '2', '3', '4']
    for i in range(5):
        assert [int(rows[str(i)][f'class_{k}']) for k in (1, 2, 3)] == classes[i].tolist()
        assert [rows[str(i)][f'name_{k}'] for k in (1, 2, 3)] == [NAMES[c] for c in classes[i]]
        found = [float(rows[str(i)][f'probability_{k}']) for k in (1, 2, 3)]
        assert found == pytest.approx(values[i].tolist(), abs=1e-5)
    assert f'{NAMES[classes[4, 0]]} {values[4, 0]:.1%}' in out and 'below/4.PNG' in out
    assert len(set(classes[:, 0].tolist())) > 1 or values.std(0).max() > 1e-3  # the pictures differ


def test_files_of_every_mode_are_read_as_the_same_picture(predict, gray, rgb, digits, tmp_path):
    image = digits[0]
    sixteen = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    variants = {
        'l.png': image,
        'rgb.bmp': image.convert('RGB'),
        'rgba.png': image.convert('RGBA'),
        'la.png': image.convert('LA'),
        'p.gif': image.convert('P'),
        'sixteen.png': sixteen,
        'sixteen.tif': sixteen,
    }
    for name, variant in variants.items():
        variant.save(tmp_path / name)
    for model, mode in ((gray, 'L'), (rgb, 'RGB')):
        predict('--model', model, '--topk', 99, '--output', tmp_path / 'out.json', *(tmp_path / n for n in variants))
        records = json.loads((tmp_path / 'out.json').read_text())
        probabilities = expected(model, [image.convert(mode)])[0]
        assert len(records) == len(variants)
        for record in records:
            found = {entry['class']: entry['probability'] for entry in record['predictions']}
            assert [found[i] for i in range(10)] == pytest.approx(probabilities.tolist(), abs=1e-4), record['file']


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_pictures_are_named_and_the_rest_is_predicted(predict, gray, folder, tmp_path, capsys, workers):
    torn = (folder / '0.png').read_bytes()
    (folder / 'torn.png').write_bytes(torn[:60])
    (folder / 'empty.jpg').write_bytes(b'')
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / 'float.tif')
    (folder / 'notes.txt').write_text('no picture')
    with pytest.raises(SystemExit, match=r'^error: 3 of 8 pictures cannot be read$'):
        predict('--model', gray, folder, '-j', workers, '--output', tmp_path / 'out.csv')
    printed = capsys.readouterr()
    for name in ('torn.png', 'empty.jpg', 'float.tif'):
        assert f'unreadable: {folder / name}: ' in printed.err
    assert '32-bit pixels (mode F) of unknown range' in printed.err
    assert f'note: left out of {folder}, not named like pictures or hidden: 1 .txt' in printed.err
    rows = list(csv.DictReader((tmp_path / 'out.csv').open()))
    assert [bool(row['error']) for row in rows] == [not row['class_1'] for row in rows]
    assert sum(bool(row['error']) for row in rows) == 3 and len(rows) == 8


def test_nothing_but_unreadable_pictures(predict, gray, tmp_path):
    (tmp_path / 'junk').write_text('junk')  # named by hand, so it is tried
    with pytest.raises(SystemExit, match=r'^error: 1 of 1 pictures cannot be read$'):
        predict('--model', gray, tmp_path / 'junk', '--output', tmp_path / 'out.json')
    (record,) = json.loads((tmp_path / 'out.json').read_text())
    assert record['file'].endswith('junk') and 'UnidentifiedImageError' in record['error']


def test_names_from_a_file_and_a_picture_named_twice(predict, gray, folder, tmp_path):
    (tmp_path / 'names.txt').write_text('\n'.join('abcdefghij'))
    arguments = ['--labels', tmp_path / 'names.txt', '--topk', 10, '--output', tmp_path / 'out.json']
    predict('--model', gray, folder / '1.png', folder, folder / '1.png', *arguments)
    records = json.loads((tmp_path / 'out.json').read_text())
    assert len(records) == 5 and records[0]['file'] == str(folder / '1.png')
    assert all(entry['name'] == 'abcdefghij'[entry['class']] for entry in records[0]['predictions'])


def test_a_thousand_classes_without_names_have_those_of_imagenet(predict, folder, tmp_path):
    arguments = ['--img-size', 32, folder / '1.png', '--topk', 1000, '--output', tmp_path / 'out.json']
    predict('--model', 'resnet10t', *arguments)
    (record,) = json.loads((tmp_path / 'out.json').read_text())
    names = ImageNetInfo().label_descriptions()
    assert {entry['class']: entry['name'] for entry in record['predictions']} == dict(enumerate(names))


class TestRecordings:
    """A model that says how its frames are made, and files in two formats of which one is of another sensor."""

    @pytest.fixture(scope='class')
    @staticmethod
    def model(tmp_path_factory) -> str:
        torch.manual_seed(0)
        net = lively(timm.create_model('msvit_4_96', in_chans=2, num_steps=3))
        set_frame_settings(net, FrameSettings(3, (34, 34), split_by='time', std=(2.0, 2.0)))
        folder = tmp_path_factory.mktemp('events')
        save_for_hf(net, folder, model_config=dict(label_names=NAMES), safe_serialization=True)
        return f'local-dir:{folder}'

    @pytest.fixture(scope='class')
    @staticmethod
    def events() -> list[Events]:
        return [writers.random_events(900, 34, seed=i) for i in range(3)]

    @pytest.fixture
    def folder(self, events, tmp_path) -> Path:
        (tmp_path / 'recordings/below').mkdir(parents=True)
        for i in range(2):
            writers.nmnist(tmp_path / f'recordings/{i}.bin', events[i])
        np.savez(tmp_path / 'recordings/below/2.npz', **events[2]._asdict())
        return tmp_path / 'recordings'

    @staticmethod
    def expected(name: str, events: list[Events]) -> torch.Tensor:
        net = timm.create_model(name, pretrained=True).eval()
        frames = torch.stack([frame_settings(net).frames(each) for each in events])
        with torch.inference_mode():
            return (net.forward_steps(frames).cumsum(1) / torch.tensor([1.0, 2.0, 3.0]).view(1, -1, 1)).softmax(2)

    def test_every_step_has_classes_probabilities_and_a_confidence(self, predict, model, events, folder, tmp_path):
        out = predict('--model', model, folder, '--topk', 2, '-b', 2, '--output', tmp_path / 'out.csv')
        rows = list(csv.DictReader((tmp_path / 'out.csv').open()))
        probabilities = self.expected(model, events)
        values, classes = probabilities.topk(2)
        assert [(Path(row['file']).stem, row['step']) for row in rows] == [
            (str(i), f'{t}') for i in range(3) for t in (1, 2, 3)
        ]
        for row, value, number in zip(rows, values.flatten(0, 1), classes.flatten(0, 1), strict=True):
            assert [int(row['class_1']), int(row['class_2'])] == number.tolist()
            assert [float(row['probability_1']), float(row['probability_2'])] == pytest.approx(value.tolist(), abs=1e-5)
            assert float(row['confidence']) == pytest.approx(float(value[0] - value[1]), abs=1e-5)
        assert out.count('.bin') == 6 and f'{NAMES[classes[0, 2, 0]]} {values[0, 2, 0]:.1%}' in out
        assert not torch.equal(probabilities[0, 0], probabilities[0, 2])

    def test_in_json_and_with_one_that_is_broken(self, predict, model, folder, tmp_path, capsys):
        (folder / '1.bin').write_bytes(b'1234')
        with pytest.raises(SystemExit, match=r'^error: 1 of 3 recordings cannot be read$'):
            predict('--model', model, '--num-steps', 2, folder, '--output', tmp_path / 'out.json')
        assert f'unreadable: {folder / "1.bin"}: EventFileError: ' in capsys.readouterr().err
        records = json.loads((tmp_path / 'out.json').read_text())
        with pytest.raises(SystemExit, match='1 of 3'):
            predict('--model', model, '--num-steps', 2, folder, '--json', '--quiet')
        printed = capsys.readouterr()
        assert json.loads(printed.out) == records and printed.err.startswith('unreadable: ')
        good = [record for record in records if 'error' not in record]
        assert [[step['step'] for step in record['steps']] for record in good] == [[1, 2]] * 2
        for step in good[0]['steps']:
            first, second = (entry['probability'] for entry in step['predictions'][:2])
            assert step['confidence'] == pytest.approx(first - second)

    def test_a_larger_sensor_is_resized_and_another_shape_refused(self, predict, model, events, tmp_path):
        big = events[0]._replace(x=events[0].x * 2, y=events[0].y * 2)
        np.savez(tmp_path / 'big.npz', **big._asdict())
        predict('--model', model, tmp_path / 'big.npz', '--sensor-size', 68, 68, '--output', tmp_path / 'out.json')
        (record,) = json.loads((tmp_path / 'out.json').read_text())
        found = {entry['class']: entry['probability'] for entry in record['steps'][-1]['predictions']}
        for number, probability in enumerate(self.expected(model, events[:1])[0, -1].tolist()):
            assert found.get(number, probability) == pytest.approx(probability, abs=1e-5)
        with pytest.raises(SystemExit, match='another shape than the 34 x 34'):
            predict('--model', model, tmp_path / 'big.npz', '--sensor-size', 68, 100)

    def test_other_bins_than_the_models_are_noted(self, predict, model, folder, capsys):
        run('recipes/predict.py', '--model', model, folder / '0.bin', '--split-by', 'number')
        assert (
            'note: frames are made otherwise than those that the model was trained on: split_by number'
            in capsys.readouterr().err
        )


def test_a_long_table_is_cut_and_says_so(predict, gray, digits, tmp_path):
    for i in range(53):
        digits[i % 5].save(tmp_path / f'{i:02}.png')
    out = predict('--model', gray, '--num-steps', 1, tmp_path, '--topk', 1)
    assert out.count('.png') == 50 and 'and 3 more: --output writes all' in out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'required: --model, PICTURE|RECORDING|FOLDER'),
        (['--model', 'msvit_4_96', 'nowhere.png'], 'there is no file or folder nowhere.png'),
        (['--model', 'msvit_4_96', RECIPES], 'has no pictures, which are files named .png, .jpg and so on'),
        (['--model', 'msvit_4_96', '--topk', 0, __file__], 'argument --topk: 0 is less than 1'),
        (
            ['--model', 'msvit_4_96', '--output', 'out.txt', __file__],
            'expected a file named .csv or .json, got out.txt',
        ),
        (['--model', 'msvit_4_96', '--labels', __file__, __file__], 'names for 10 classes'),
        (['--model', 'msvit_2_256', __file__], 'takes 2 channels, such as event frames have, and pictures have 1 or 3'),
        (['--model', 'msvit_4_96', '--model-kwargs', 'num_classes=0', '--', __file__], 'has no classifier'),
        (['--model', 'msvit_2_256', '--sensor-size', 9, 9, RECIPES], 'has no recordings, which are files named .aedat'),
        (['--model', 'resnet10t', '--sensor-size', 9, 9, __file__], 'resnet10t has no time steps'),
        (['--model', 'msvit_4_96', '--bin-ms', 10, __file__], 'and this is a model of pictures'),
        (['--model', 'msvit_nope', __file__], "cannot create model 'msvit_nope'"),
        (['--model', 'msvit_4_96', '--split', 'test', __file__], 'unrecognized arguments: --split'),
    ],
)
def test_mistakes_end_in_one_line(predict, arguments, message):
    with pytest.raises(SystemExit) as stop:
        predict(*arguments)
    assert str(stop.value).startswith('error: ') and message in str(stop.value) and '\n' not in str(stop.value)
