"""The loop of masks and boxes, on a task of a few numbers."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchmetrics.regression import MeanSquaredError

from tests.support.scripts import accelerator_of_its_own
from timm_snn.training import dense
from timm_snn.training.dense import DenseTask, run_dense
from timm_snn.training.dense_data import InMemory, JointSamples, JointTrainingSamples
from timm_snn.training.errors import UserError, script
from timm_snn.training.options import dense_options, dense_parser


class Numbers:
    """Pictures of one pixel, whose targets are dicts, as those of boxes are."""

    classes = ('number',)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((1, 1, 1), index / 20), {'value': torch.tensor(2 * index / 20)}

    def name_of(self, index):
        return f'number {index}'

    def facts(self):
        return {'numbers': 'these'}


class Learner(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(1, 1)

    def forward(self, images, targets=None):
        values = self.model(torch.stack([image.flatten() for image in images]))[:, 0]
        if not self.training:
            return values
        wanted = torch.stack([target['value'] for target in targets])
        return {'square': ((values - wanted) ** 2).mean(), 'none': 0 * values.sum()}


class Error(nn.Module):
    def __init__(self):
        super().__init__()
        self.error, self.by_class, self.samples = MeanSquaredError(), [], 0

    def update(self, predictions, targets):
        self.samples += len(predictions)
        self.error.update(predictions, torch.stack([target['value'] for target in targets]))

    def compute(self):
        self.by_class = [{'class': 0, 'error': 1.0}]
        return {'map50': self.error.compute().item(), 'samples': self.samples}


def jitter(image, target):
    return image + 0.1 * torch.rand(1), target


def open_numbers(args):
    torch.manual_seed(0)
    learner = Learner()
    source = Numbers()
    return DenseTask(
        name='toy',
        title='a line',
        learner=learner,
        model=learner.model,
        train_set=JointTrainingSamples(source, range(20), args.seed, jitter),
        val_set=JointSamples(source, range(7)),
        test_set=JointSamples(source, range(20)) if args.test_split else None,
        collate=lambda samples: ([image for image, _ in samples], [target for _, target in samples]),
        make_metric=Error,
        metric='map50',
        label='error',
        picture=lambda learner, samples, file: file.write_bytes(b'png'),
        class_names=['number'],
        data_config={},
    )


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains a line and returns its output."""
    monkeypatch.setattr(dense, 'save', lambda model, folder, **_: torch.save(model.state_dict(), folder))

    @script
    def main(argv):
        parser = dense_parser('recipes/toy.py', None, target_key='value', output=tmp_path / 'toy')
        run_dense(dense_options(parser, argv), argv, 'recipes/toy.py', open_numbers)

    def run(*arguments):
        argv = ['--epochs', '3', '--batch-size', '4', '--workers', '0', '--log-with', 'none', '--num-threads', '1']
        argv += ['--model-ema', '--model-ema-decay', '0.9', '--grad-accum-steps', '2', '--lr', '0.1']
        with accelerator_of_its_own():
            main([*argv, *map(str, arguments)])

    return run


def rows_of(output):
    with open(output / 'summary.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        del row['images_per_s'], row['train_seconds']
    return rows


def test_a_run_that_was_killed_goes_on_bit_by_bit(train, tmp_path, monkeypatch):
    """Between two epochs, and within one."""
    train('--output', tmp_path / 'whole')
    train('--output', tmp_path / 'parts', '--max-steps', 1)

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(dense, 'write_run_summary', killed)  # after the checkpoint of an epoch
        with pytest.raises(Killed):
            train('--output', tmp_path / 'parts', '--resume', 'auto')
    train('--output', tmp_path / 'parts', '--resume', 'auto')
    assert rows_of(tmp_path / 'parts') == rows_of(tmp_path / 'whole') and len(rows_of(tmp_path / 'whole')) == 3
    last = 'checkpoints/epoch_0003'
    for file in ('model.safetensors', 'ema.safetensors'):
        whole, parts = load_file(tmp_path / 'whole' / last / file), load_file(tmp_path / 'parts' / last / file)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_a_run_leaves_what_it_says_and_reports_the_test_split(train, tmp_path, capsys):
    train('--test-split', 'test', '--json')
    told = json.loads(capsys.readouterr().out)
    output = tmp_path / 'toy'
    names = ['checkpoints', 'config.yaml', 'curve.png', 'model', 'per_class.csv', 'predictions.png', 'results_row.csv']
    assert sorted(path.name for path in output.iterdir() if path.name[0] != '.') == [*names, 'summary.csv', 'test.json']
    tested = json.loads((output / 'test.json').read_text())
    assert tested['samples'] == 20 == told['measured']['samples'] and told['split'] == 'test'
    assert told['map50'] == tested['map50'] == told['measured']['map50']
    (row,) = csv.DictReader((output / 'results_row.csv').open())
    assert row['model'] == 'a line' and row['split'] == 'test' and float(row['map50']) == round(told['map50'], 2)
    assert row['command'].startswith('accelerate launch recipes/toy.py ')


def test_every_validation_sample_counts_once(train, tmp_path):
    train()
    assert [row['eval_samples'] for row in rows_of(tmp_path / 'toy')] == ['7'] * 3
    assert {row['ema_samples'] for row in rows_of(tmp_path / 'toy')} == {'7'}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_its_batch(train, tmp_path, monkeypatch):
    sample = torch.full((1, 1, 1), torch.nan), {'value': torch.ones(())}
    monkeypatch.setattr(Numbers, '__getitem__', lambda *_: sample)
    with pytest.raises(SystemExit, match='loss nan, gradient norm nan in update 1 of epoch 1'):
        train()
    batch = load_file(tmp_path / 'toy' / 'failed' / 'batch_0.safetensors')
    assert sorted(batch) == [f'images.{i}' for i in range(4)] + [f'targets.{i}.value' for i in range(4)]


def test_options_that_would_be_ignored_are_refused(train):
    for arguments, message in (
        (('--val-fraction', '0.1'), 'unrecognized arguments: --val-fraction'),
        (('--input-key', 'picture'), 'argument --input-key: it needs a data set of Hugging Face'),
        (('--dataset', 'digits'), "argument --dataset: expected hfds/... or '' for files"),
        (('--class-names', 'a', 'b', '--num-classes', '3'), '3 and 2 names'),
        (('--no-model-ema', '--model-ema-decay', '0.9'), 'argument --model-ema-decay: it needs --model-ema'),
    ):
        with pytest.raises(SystemExit, match=message):
            train(*arguments)


def test_the_same_numbers_are_drawn_for_a_sample_wherever_it_is_read():
    samples = JointTrainingSamples(Numbers(), range(20), 3, jitter)
    first = samples[5][0]
    samples[6]
    assert torch.equal(samples[5][0], first)
    samples.epoch = 1
    assert not torch.equal(samples[5][0], first)


def test_pictures_are_decoded_once_where_they_are_kept():
    read = []

    class Counted(Numbers):
        def __getitem__(self, index):
            read.append(index)
            if index == 19:
                raise OSError('torn')
            return super().__getitem__(index)

    kept = InMemory(Counted(), [3, 5], None)
    for index in (3, 5, 3, 4):
        assert torch.equal(kept[index][0], Numbers()[index][0])
    assert read == [3, 3, 5, 4]  # the first one tells how large they are
    with pytest.raises(UserError, match='sample number 19 is unreadable, OSError: torn; --no-data-in-memory'):
        InMemory(Counted(), [19], True)
    assert InMemory(Counted(), [3], False).samples == {}
