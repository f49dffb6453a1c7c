"""recipes/validate.py as users run it: on real digits, and given data whose classes are not the model's."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_input_data_config
from timm.models import save_for_hf

from tests.support.scripts import ROOT, run
from tests.support.training import QUICK
from timm_snn.training import models
from timm_snn.training.data import Digits, choose_samples

pytest.importorskip('rich')
load_digits = pytest.importorskip('sklearn.datasets').load_digits

NAMES = [f'digit {i}' for i in range(10)]


@pytest.fixture
def validate(capsys, tmp_path):
    """Run the script in this process; returns what it printed and the folder it wrote."""

    def run_it(*arguments: object, output: str = 'out') -> tuple[str, Path]:
        run('recipes/validate.py', *arguments, '--output', tmp_path / output)
        return capsys.readouterr().out, tmp_path / output

    return run_it


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    """A small model after 30 updates, which is right for about half of the digits; its classes are 'digit 0' and so on.

    Saved for 16 x 16 pixels and 3 time steps.
    """
    torch.manual_seed(0)
    model = timm.create_model('msvit_4_96', num_steps=3, depths=(0, 0, 1))
    model.pretrained_cfg['input_size'] = (1, 16, 16)
    images, labels = inputs(model, Digits(train=True), 640)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for i in range(30):
        batch = slice(64 * (i % 10), 64 * (i % 10) + 64)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp('model')
    save_for_hf(model, folder, model_config=dict(label_names=NAMES), safe_serialization=True)
    return folder


def inputs(model: Any, dataset: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    transform = create_transform(**resolve_input_data_config(model))
    images, labels = zip(*(dataset[i] for i in range(number)), strict=True)
    return torch.stack([transform(image) for image in images]), torch.tensor(labels)


@pytest.fixture(scope='module')
def recount(saved) -> dict[int, torch.Tensor]:
    """Logits of the 360 held-out digits for T = 1, 2, 3, from models made for that T, and under 0 their labels."""
    digits = Digits(train=False)
    logits = {}
    for t in (1, 2, 3):
        model = timm.create_model(f'local-dir:{saved}', pretrained=True, num_steps=t).eval()
        images, logits[0] = inputs(model, digits, 360)
        with torch.inference_mode():
            logits[t] = torch.cat([model(batch) for batch in images.split(32)])
    return logits


@pytest.fixture
def folder(tmp_path) -> Path:
    """The first 30 real digits as DATA/validation/digit N/I.png."""
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images[:30], labels, strict=False)):
        path = tmp_path / 'data' / 'validation' / NAMES[label] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 15).astype('uint8')).save(path)
    return tmp_path / 'data'


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(encoding='utf-8')))


def test_numbers_are_those_of_an_independent_recount(validate, saved, recount):
    """360 samples in batches of 32, so that the last one is smaller."""
    printed, output = validate('--model', f'local-dir:{saved}', '--predictions', '--num-threads', 1)
    result = json.loads((output / 'results.json').read_text())
    labels, logits = recount[0], recount[3]
    hits = logits.argmax(1) == labels
    assert result['samples'] == 360 and result['top1_correct'] == int(hits.sum())
    assert result['top1'] == pytest.approx(100 * hits.double().mean().item())
    assert result['top5_correct'] == int((logits.topk(5).indices == labels[:, None]).sum())
    assert result['loss'] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert f'top-1 {result["top1"]:.2f} % ({result["top1_correct"]} of 360), top-5 ' in printed
    assert 0.3 < hits.double().mean() < 0.95  # or else little is tested
    assert result['data'] == 'digits, validation split, all 360' and result['num_steps'] == 3

    per_class = rows(output / 'per_class.csv')
    assert [int(row['samples']) for row in per_class] == labels.bincount().tolist()
    assert [int(row['top1_correct']) for row in per_class] == labels[hits].bincount(minlength=10).tolist()
    predictions = rows(output / 'predictions.csv')
    assert [int(row['class']) for row in predictions] == labels.tolist()
    assert [int(row['predicted_class']) for row in predictions] == logits.argmax(1).tolist()
    assert sum(float(row['probability']) for row in predictions) == pytest.approx(
        logits.softmax(1).amax(1).sum().item(), rel=1e-4
    )


def test_one_run_gives_the_accuracy_of_every_number_of_steps(validate, saved, recount):
    _, output = validate('--model', f'local-dir:{saved}')
    steps = rows(output / 'steps.csv')
    correct = [int((recount[t].argmax(1) == recount[0]).sum()) for t in (1, 2, 3)]
    assert len(set(correct)) == 3  # or else little is tested
    assert [int(row['num_steps']) for row in steps] == [1, 2, 3]
    assert [int(row['top1_correct']) for row in steps] == correct
    _, output = validate('--model', f'local-dir:{saved}', '--num-steps', 2, '--steps', 1)
    assert [row['top1_correct'] for row in rows(output / 'steps.csv')] == [str(correct[0])]
    assert json.loads((output / 'results.json').read_text())['top1_correct'] == correct[1]


def test_attention_over_chunks_of_steps_exits_at_their_ends(validate, saved, tmp_path):
    model = timm.create_model(f'local-dir:{saved}', pretrained=True)
    chunked = timm.create_model('msvit_4_96', num_steps=3, depths=(0, 0, 1), attn='statten', in_chans=1)
    chunked.load_state_dict(model.state_dict())
    chunked.pretrained_cfg = {**model.pretrained_cfg, 'num_classes': 10}
    save_for_hf(chunked, tmp_path / 'chunked', model_config=dict(label_names=NAMES), safe_serialization=True)
    _, output = validate('--model', f'local-dir:{tmp_path / "chunked"}', '-n', 4)
    assert [int(row['num_steps']) for row in rows(output / 'steps.csv')] == [2, 3]
    with pytest.raises(SystemExit, match='chunks of 2 steps and no answer after 1: --steps takes some of 2, 3'):
        validate('--model', f'local-dir:{tmp_path / "chunked"}', '-n', 4, '--steps', 1)


def test_models_without_time_steps_and_files_of_an_earlier_run(validate, saved, folder):
    validate('--model', f'local-dir:{saved}', '-n', 4, '--predictions')
    arguments = ['--model', 'resnet10t', '--model-kwargs', 'in_chans=1', 'num_classes=3', '--img-size', 32]
    for name in NAMES[3:]:
        shutil.rmtree(folder / 'validation' / name)
    printed, output = validate(*arguments, '--dataset', '', '--data-dir', folder, '-b', 4)
    result = json.loads((output / 'results.json').read_text())
    assert result['num_steps'] is None and result['early_exit'] == [] and 'top5' not in result
    assert sorted(path.name for path in output.iterdir()) == ['per_class.csv', 'results.json']
    assert [row['name'] for row in rows(output / 'per_class.csv')] == NAMES[:3]
    assert 'T =' not in printed and 'early exit' not in printed


def test_weights_of_a_training_run_and_of_a_pth_file(validate, saved, tmp_path):
    """A run's options come with its checkpoints; of a file they are asked for."""
    looks = ['--img-size', 20, '--mean', 0.4, '--std', 0.3]
    _, output = validate('--model', f'local-dir:{saved}', '-n', 50, *looks)
    expected = json.loads((output / 'results.json').read_text())
    weights = safetensors.torch.load_file(saved / 'model.safetensors')
    wrapped = {f'_orig_mod.module.{key}': value for key, value in weights.items()}  # by DDP and torch.compile
    folder = tmp_path / 'run' / 'checkpoints' / 'epoch_0001'
    folder.mkdir(parents=True)
    safetensors.torch.save_file(wrapped, folder / 'model.safetensors')
    arguments = {'num_steps': 3, 'depths': [0, 0, 1]}
    config = {'model': 'msvit_4_96', 'num_classes': None, 'model_kwargs': arguments, 'img_size': 20}
    looks_of_run = {'mean': [0.4], 'std': [0.3]}
    (tmp_path / 'run' / 'config.yaml').write_text(yaml.safe_dump({**config, **looks_of_run}))
    torch.save({'state_dict': weights}, tmp_path / 'weights.pth')
    kwargs = ['--model-kwargs', 'depths=(0,0,1)', 'num_steps=3']
    for checkpoint, more in ((folder, []), (tmp_path / 'weights.pth', [*kwargs, *looks])):
        _, output = validate('--model', 'msvit_4_96', '--checkpoint', checkpoint, '-n', 50, *more)
        result = json.loads((output / 'results.json').read_text())
        assert result['checkpoint'] == str(checkpoint)
        assert (result['early_exit'], result['loss']) == (expected['early_exit'], expected['loss'])
    with pytest.raises(SystemExit, match="is of a run that trained 'msvit_4_96': pass --model msvit_4_96"):
        validate('--model', 'msvit_4_384', '--checkpoint', folder)

    base = shutil.copytree(saved, tmp_path / 'base')  # fine-tuned to the weights of the checkpoint
    safetensors.torch.save_file({key: value + 1 for key, value in weights.items()}, base / 'model.safetensors')
    begun_with = f'local-dir:{base}'
    (tmp_path / 'run' / 'config.yaml').write_text(yaml.safe_dump({**config, 'model': begun_with, **looks_of_run}))
    _, output = validate('--model', begun_with, '--checkpoint', folder, '-n', 50)
    assert json.loads((output / 'results.json').read_text())['loss'] == expected['loss']
    with pytest.raises(SystemExit, match='it has its own weights: leave out --checkpoint'):
        validate('--model', begun_with, '--checkpoint', tmp_path / 'weights.pth')


def test_half_precision_and_channels_last(validate, saved):
    _, output = validate('--model', f'local-dir:{saved}', '-n', 40, '--channels-last')
    plain = json.loads((output / 'results.json').read_text())
    _, output = validate('--model', f'local-dir:{saved}', '-n', 40, '--amp', 'bfloat16')
    half = json.loads((output / 'results.json').read_text())
    assert (plain['dtype'], half['dtype']) == ('float32', 'bfloat16')
    assert plain['loss'] != half['loss'] and half['loss'] == pytest.approx(plain['loss'], rel=0.2)


def test_the_model_runs_fused_unless_that_is_refused(validate, saved, monkeypatch):
    fused = []
    fuse = models.fuse
    monkeypatch.setattr(models, 'fuse', lambda model: fused.append(fuse(model)) or fused[-1])
    losses = []
    for option in ('--fuse', '--no-fuse'):
        _, output = validate('--model', f'local-dir:{saved}', '-n', 40, option)
        losses.append(json.loads((output / 'results.json').read_text())['loss'])
    assert len(fused) == 1 and losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_model_that_cannot_be_fused_runs_as_it_is_with_a_note(saved, tmp_path, monkeypatch, capsys):
    def refuse(model):
        raise ValueError('it is pruned')

    monkeypatch.setattr(models, 'fuse', refuse)
    run('recipes/validate.py', '--model', f'local-dir:{saved}', '-n', 4, '--output', tmp_path)
    notes = [line for line in capsys.readouterr().err.splitlines() if 'fused' in line]
    assert notes == [f'note: local-dir:{saved} runs as it is, not fused: it is pruned']


def test_a_folder_without_some_classes_is_matched_by_name(validate, saved, folder):
    """timm numbers the classes of a folder anew, from 0."""
    arguments = ['--model', f'local-dir:{saved}', '--dataset', '', '--data-dir', folder, '--predictions']
    _, output = validate(*arguments)
    whole = {row['sample']: row for row in rows(output / 'predictions.csv')}
    assert len(whole) == 30 and all(row['name'] == row['sample'].split('/')[-2] for row in whole.values())
    for name in (NAMES[0], NAMES[7]):
        shutil.rmtree(folder / 'validation' / name)
    printed, output = validate(*arguments)
    part = rows(output / 'predictions.csv')
    assert len(part) == 24
    assert all(whole[row['sample']]['class'] == row['class'] for row in part)
    per_class = rows(output / 'per_class.csv')
    assert [row['top1'] == '' for row in per_class] == [i in (0, 7) for i in range(10)]
    assert '2 have no samples' in printed


def test_the_worst_classes_come_first(validate, saved, recount):
    """Under the data's names; it numbers its classes as the model does."""
    printed, _ = validate('--model', f'local-dir:{saved}', '--worst', 3)
    hits = recount[3].argmax(1) == recount[0]
    accuracy = [hits[recount[0] == i].double().mean().item() for i in range(10)]
    worst = sorted(range(10), key=lambda i: accuracy[i])[:3]
    table = printed.split('the worst of 10 classes')[1]
    assert [line.split('│')[2].strip() for line in table.splitlines() if '│' in line] == [str(i) for i in worst]


def test_parquet_files_are_matched_by_name_too(validate, saved, folder, tmp_path):
    datasets = pytest.importorskip('datasets')
    source = dict(data_dir=str(folder / 'validation'), split='train', cache_dir=str(tmp_path))
    data = datasets.load_dataset('imagefolder', **source)
    names = data.features['label'].names
    backwards = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names[::-1]))
    turned = data.map(lambda row: {'label': 9 - row['label']}).cast(backwards)
    arguments = ['--model', f'local-dir:{saved}', '--data-dir', tmp_path / 'cache', '--input-key', 'image']
    results = []
    for name, split in (('alike', data), ('turned', turned)):
        split.to_parquet(str(tmp_path / name / 'validation-00000-of-00001.parquet'))
        _, output = validate(*arguments, '--target-key', 'label', '--dataset', f'hfds/{tmp_path / name}')
        results.append(rows(output / 'per_class.csv'))
    assert results[0] == results[1] and sum(int(row['samples']) for row in results[0]) == 30


@pytest.mark.parametrize('workers', [0, 1])
def test_an_unreadable_image_ends_the_run_and_no_other_takes_its_place(validate, saved, folder, workers):
    broken = folder / 'validation' / 'digit 2' / '2.png'
    broken.write_bytes(broken.read_bytes()[:60])
    arguments = ['--model', f'local-dir:{saved}', '--dataset', '', '--data-dir', folder, '-j', workers]
    with pytest.raises(SystemExit, match=r'cannot evaluate .*: sample .*digit 2/2\.png is unreadable, OSError') as stop:
        validate(*arguments)
    assert '\n' not in str(stop.value)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--steps', 1, 4], 'runs for T = 3: pass --num-steps 4'),
        (['--steps', 0], '0 is less than 1; see recipes/validate.py --help'),
        (['--model', 'resnet10t', '--num-steps', 2], 'it has no time steps: leave out --num-steps'),
        (['--model', 'resnet10t', '--steps', 1], 'answers once, not after every time step: leave out --steps'),
        (['--model', 'resnet10t'], r'cannot match the classes of the data, 10 \(0, 1, 2 \.\.\.\), with those of the '),
        (['--model', 'msvit_4_96', '--checkpoint', ROOT / 'recipes'], 'there is no file .*model.safetensors'),
        (['--labels', __file__], r'test_validate\.py has \d+ names for 10 classes'),
        (['--labels', 'nowhere'], 'cannot name the classes: .*No such file'),
        (['--model-kwargs', 'num_steps'], 'cannot read the command line: .*--model-kwargs takes name=value'),
        (['--model', 'msvit_4_96', '--model-kwargs', 'num_classes=0'], 'msvit_4_96 has no classifier'),
        (['-j', '-1'], 'cannot evaluate'),
        (['--amp', 'int8'], "invalid choice: 'int8'"),
        (['--split', 'tset', '--dataset', '', '--data-dir', '.'], "cannot open split 'tset'"),
        (['--dataset', 'digitz'], "unknown data set 'digitz'"),
        (['--split', 'tset'], "data set 'digits' has no split 'tset': use train, or validation, also called test"),
        (['--device', 'nonsense'], 'cannot create model'),
    ],
)
def test_mistakes_end_in_one_line(validate, saved, arguments, message):
    with pytest.raises(SystemExit, match=f'^error: .*{message}') as stop:
        validate('--model', f'local-dir:{saved}', *arguments)
    assert '\n' not in str(stop.value)


def test_an_output_that_cannot_be_written_is_one_line(validate, saved, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit, match=r'^error: cannot write to --output'):
        validate('--model', f'local-dir:{saved}', output='file')


def test_folders_with_other_names_need_them_in_the_order_of_the_model(validate, saved, folder, tmp_path):
    """Sorted by name, 'eight' would be class 0."""
    words = ['zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine']
    arguments = ['--model', f'local-dir:{saved}', '--dataset', '', '--data-dir', folder]
    _, output = validate(*arguments)
    expected = rows(output / 'per_class.csv')
    for name, word in zip(NAMES, words, strict=True):
        (folder / 'validation' / name).rename(folder / 'validation' / word)
    with pytest.raises(SystemExit, match='pass --labels FILE with the 10 names that the data uses'):
        validate(*arguments)
    (tmp_path / 'names.txt').write_text('\n'.join(words) + '\n')
    _, output = validate(*arguments, '--labels', tmp_path / 'names.txt')
    found = rows(output / 'per_class.csv')
    assert [row.pop('name') for row in found] == words and [row.pop('name') for row in expected] == NAMES
    assert found == expected


def test_the_split_that_is_named_is_the_one_that_is_counted(validate, saved):
    for split, number in (('train', 1437), ('test', 360)):
        printed, _ = validate('--model', f'local-dir:{saved}', '--split', split, '--num-steps', 1, '-b', 240)
        assert f'digits, {split} split, all {number:,}' in printed


def test_a_model_of_a_fold_is_tested_on_what_it_has_not_seen(validate, train, tmp_path):
    train(*QUICK, '--epochs', 1, '--max-steps', 2, '--fold', '2/5', '--log-with', 'none', '--output', tmp_path / 'run')
    model = ['--model', f'local-dir:{tmp_path / "run" / "model"}', '--dataset', 'digits', '--img-size', 16]
    with pytest.raises(SystemExit, match=r'all of the data but fold 2/5.*pass --fold 2/5 to test it on the others'):
        validate(*model)
    printed, output = validate(*model, '--fold', '2/5', '--predictions')
    held_out = choose_samples(Digits(True), Digits(False), seed=0, fold='2/5')[1].indices
    rows = list(csv.DictReader((output / 'predictions.csv').open()))
    labels = np.concatenate([Digits(True).labels, Digits(False).labels])[list(held_out)]
    assert [int(row['class']) for row in rows] == labels.tolist()
    assert f'fold 2/5 of train and validation, all {len(held_out)}' in printed
    assert 'all 360' in validate(*model, '--fold', 'none')[0]
    checkpoint = tmp_path / 'run' / 'checkpoints' / 'epoch_0000_step_000002'
    with pytest.raises(SystemExit, match='all of the data but fold 2/5'):
        validate('--model', 'msvit_4_96', '--checkpoint', checkpoint, '--dataset', 'digits')


def test_json_is_what_the_file_has_with_the_classes(validate, saved):
    printed, folder = validate('--model', f'local-dir:{saved}', '-n', 20, '--json', '--quiet')
    result = json.loads(printed)
    classes, files = result.pop('classes'), result.pop('files')
    assert result == json.loads((folder / 'results.json').read_text())
    assert len(classes) == 10 and [Path(file).name for file in files] == ['results.json', 'per_class.csv', 'steps.csv']
