"""What the options of recipes/train.py promise, one by one, on real digits."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.task import ClassificationTask, LogitDistillationTask
from timm.utils import ModelEmaV3

import timm_snn
from tests.support.training import QUICK, assert_same_weights, weights
from timm_snn.training.data import Digits

SMALL = [*QUICK, '--max-train-samples', '192', '--max-val-samples', '37', '--epochs', '1', '--warmup-epochs', '0']


def rows(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / 'summary.csv').open()))


class TestLoss:
    def test_tet_trains_and_saves_a_usual_model(self, train, tmp_path):
        train(*SMALL, '--tet', '0.05', '--output', tmp_path)
        assert weights(tmp_path).keys() == timm.create_model('msvit_4_96').state_dict().keys()

    def test_tet_needs_a_model_with_steps(self, train, tmp_path):
        with pytest.raises(SystemExit, match='cannot set up the loss at every time step: ResNet has no forward_steps'):
            train(*SMALL, '--tet', '0', '--model', 'resnet10t', '--num-classes', '10', '--in-chans', '1')

    def test_a_teacher_changes_what_is_learnt(self, train, finished, tmp_path):
        teacher = f'local-dir:{finished / "model"}'
        train(*SMALL, '--output', tmp_path / 'without')
        train(*SMALL, '--kd-model-name', teacher, '--kd-task-weight', '1', '--output', tmp_path / 'ignored')
        train(*SMALL, '--kd-model-name', teacher, '--kd-temperature', '2', '--output', tmp_path / 'with')
        key = 'head.fc.weight'
        without, ignored, taught = (weights(tmp_path / name)[key] for name in ('without', 'ignored', 'with'))
        assert torch.equal(without, ignored) and not torch.equal(without, taught)

    def test_the_artificial_twin_teaches_every_step(self, train, tmp_path):
        twin = ('--model-kwargs', 'act=relu')
        train(*SMALL, *twin, '--output', tmp_path / 'twin')
        teacher = timm.create_model(f'local-dir:{tmp_path / "twin" / "model"}', pretrained=True)
        assert teacher.num_steps == 1
        taught = ('--tet', '0', '--kd-model-name', f'local-dir:{tmp_path / "twin" / "model"}')
        train(*SMALL, '--tet', '0', '--output', tmp_path / 'alone')
        train(*SMALL, *taught, '--output', tmp_path / 'taught')
        alone, learnt = (weights(tmp_path / name)['head.fc.weight'] for name in ('alone', 'taught'))
        assert not torch.equal(alone, learnt)
        assert timm.create_model(f'local-dir:{tmp_path / "taught" / "model"}', pretrained=True).num_steps == 4

    def test_a_teacher_that_does_not_exist_is_refused(self, train, tmp_path):
        with pytest.raises(SystemExit, match="cannot create the teacher 'resnet_of_nobody'"):
            train(*SMALL, '--kd-model-name', 'resnet_of_nobody', '--output', tmp_path)


class TestGraphAndPackedSpikes:
    def test_packed_spikes_train_the_same_weights(self, train, tmp_path, monkeypatch):
        packed = []
        pack = timm_snn.ops.packed._pack
        monkeypatch.setattr(timm_snn.ops.packed, '_pack', lambda x: packed.append(pack(x)) or packed[-1])
        train(*SMALL, '--output', tmp_path / 'without')
        assert not packed
        train(*SMALL, '--packed-spikes', '--output', tmp_path / 'with')
        assert any(tensor is not None for tensor in packed)
        assert_same_weights(tmp_path / 'without', tmp_path / 'with')

    def test_what_cannot_be_combined_is_refused(self, train, tmp_path):
        with pytest.raises(SystemExit, match='--packed-spikes and --compile: one of them'):
            train(*SMALL, '--packed-spikes', '--compile')
        with pytest.raises(SystemExit, match='--cuda-graph: it needs a CUDA device, and this run is on cpu') as stop:
            train(*SMALL, '--cuda-graph', '--output', tmp_path / 'run')
        assert '\n' not in str(stop.value) and not (tmp_path / 'run').exists()


class TestFineTuning:
    def test_frozen_modules_stay_as_they_were(self, train, finished, tmp_path):
        before = weights(finished)
        start = ['--checkpoint', finished / 'model' / 'model.safetensors', '--freeze', 'stem', 'stages.0']
        train(*SMALL, *start, '--output', tmp_path)
        for name, tensor in weights(tmp_path).items():
            if name.startswith(('stem', 'stages.0')):
                assert torch.equal(tensor, before[name]), name
            elif tensor.ndim > 1:  # which decay; what is silent gives the others no gradient
                assert not torch.equal(tensor, before[name]), name

    def test_layer_decay_slows_the_first_layers(self, train, finished, tmp_path):
        start = ['--checkpoint', finished / 'model' / 'model.safetensors', '--weight-decay', '0']
        train(*SMALL, *start, '--layer-decay', '1e-6', '--output', tmp_path)
        before, after = weights(finished), weights(tmp_path)
        assert float(rows(tmp_path)[0]['lr']) > 1e-5  # that of the classifier
        change = {key: (after[key] - before[key]).abs().max() for key in ('stem.units.0.conv.weight', 'head.fc.weight')}
        assert change['stem.units.0.conv.weight'] < 1e-8 < 1e-4 < change['head.fc.weight']

    def test_a_module_that_does_not_exist_cannot_be_frozen(self, train):
        with pytest.raises(SystemExit, match="it has no module 'stemm' to freeze, but stem, stages, head"):
            train(*SMALL, '--freeze', 'stemm')


class TestOptimisation:
    def test_the_learning_rate_follows_the_effective_batch(self, train, tmp_path):
        rate = ['--lr-base', '0.004', '--lr-base-size', '256', '--batch-size', '16', '--grad-accum-steps', '3']
        printed = train(*SMALL, *rate, '--output', tmp_path)
        assert 'effective batch 48 (16 x 1 processes x 3 accumulated), lr 0.00075,' in printed

    def test_the_average_is_what_is_reported_and_saved(self, train, tmp_path):
        printed = train(*SMALL, '--model-ema', '--model-ema-decay', '0.5', '--output', tmp_path)
        (row,) = rows(tmp_path)
        assert row['ema_loss'] != row['eval_loss'] and printed.endswith(f'top-1: {float(row["ema_top1"]):.2f}\n')
        checkpoint = tmp_path / 'checkpoints' / 'epoch_0001'
        average, trained = (load_file(checkpoint / f'{name}.safetensors') for name in ('ema', 'model'))
        saved = weights(tmp_path)
        assert all(torch.equal(average[key], saved[key]) for key in average)
        assert not torch.equal(trained['head.fc.weight'], saved['head.fc.weight'])

    def test_muon_takes_matrices_and_goes_on_as_if_never_stopped(self, train, tmp_path):
        muon = ['--opt', 'muon', '--opt-kwargs', "fallback_list=['head.*']", '--model-ema', '--epochs', '2']
        train(*SMALL, *muon, '--max-steps', '4', '--output', tmp_path / 'whole')
        train(*SMALL, *muon, '--max-steps', '2', '--output', tmp_path / 'parts')
        train(*SMALL, *muon, '--max-steps', '4', '--output', tmp_path / 'parts', '--resume', 'auto')
        assert_same_weights(tmp_path / 'whole', tmp_path / 'parts')
        saved = torch.load(tmp_path / 'whole' / 'checkpoints' / 'epoch_0001_step_000001' / 'optimizer.bin')
        groups, states = saved['param_groups'], saved['state']
        kinds = [(bool(group['weight_decay']), states[i]['use_muon']) for group in groups for i in group['params']]
        matrices = [name for name, weight in weights(tmp_path / 'whole').items() if weight.ndim > 1]
        assert kinds.count((True, True)) == len(matrices) - 2  # the classifier, and a stem of one channel
        assert kinds.count((True, False)) == 2 and (False, True) not in kinds

    def test_mixing_stops_at_its_epoch(self, train, tmp_path, monkeypatch):
        mixed = []
        call = timm.data.Mixup.__call__

        def spy(self, images, labels):
            before = images.clone()
            images, labels = call(self, images, labels)
            mixed.append(not torch.equal(images, before))
            return images, labels

        monkeypatch.setattr(timm.data.Mixup, '__call__', spy)
        mix = ['--mixup', '1.0', '--mixup-off-epoch', '1', '--epochs', '2']
        train(*SMALL, *mix, '--output', tmp_path)
        assert mixed == [True, True, True, False, False, False]

    def test_a_batch_that_does_not_fit_is_halved_and_accumulated(self, train, tmp_path, monkeypatch):
        """A model that says what torch says on a GPU that is full."""
        forward = timm_snn.MSViT.forward

        def limited(self, x):
            if len(x) > 16 and self.training:
                raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
            return forward(self, x)

        monkeypatch.setattr(timm_snn.MSViT, 'forward', limited)
        printed = train(*SMALL, '--find-batch-size', '--output', tmp_path)
        assert 'effective batch 64 (16 x 1 processes x 4 accumulated)' in printed
        with pytest.raises(SystemExit, match='cannot find a batch size: No executable batch size found'):
            train(*SMALL, '--batch-size', '51', '--find-batch-size', '--output', tmp_path / 'odd')

    @pytest.mark.parametrize('kept', ['average', 'teacher'])
    def test_what_is_kept_beside_the_model_counts_for_the_size_of_the_batch(
        self, train, finished, tmp_path, monkeypatch, kept
    ):
        task = LogitDistillationTask if kept == 'teacher' else ClassificationTask
        forward, init, averages = task.forward, ModelEmaV3.__init__, []

        def limited(self, images, labels):
            if len(images) > 16 and (kept == 'teacher' or averages):
                raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
            return forward(self, images, labels)

        monkeypatch.setattr(task, 'forward', limited)
        monkeypatch.setattr(
            ModelEmaV3, '__init__', lambda self, *args, **kwargs: averages.append(init(self, *args, **kwargs))
        )
        option = ['--kd-model-name', f'local-dir:{finished / "model"}'] if kept == 'teacher' else ['--model-ema']
        printed = train(*SMALL, *option, '--find-batch-size', '--max-steps', '1', '--output', tmp_path)
        assert 'effective batch 64 (16 x 1 processes x 4 accumulated)' in printed

    @pytest.mark.parametrize(
        'option',
        ['--grad-checkpointing', '--no-channels-last', '--deterministic', '--backend=torch', '--no-sparse-spikes'],
    )
    def test_options_that_do_not_change_the_result(self, train, tmp_path, option):
        """Up to the rounding of float32, in which a spike may flip."""
        train(*SMALL, '--max-steps', '1', option, '--output', tmp_path)
        assert abs(float(rows(tmp_path)[0]['train_loss']) - 2.305) < 0.02

    def test_a_backend_that_is_not_there_is_refused(self, train):
        with pytest.raises(SystemExit, match=r"cannot create model 'msvit_4_96': unknown .*'abacus'"):
            train(*SMALL, '--backend', 'abacus')

    @pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU has it')
    @pytest.mark.parametrize('option', [['--backend', 'triton'], ['--model-kwargs', 'backend=cupy']])
    def test_a_backend_that_cannot_run_here_is_found_out_before_anything_is_written(self, train, tmp_path, option):
        with pytest.raises(SystemExit, match=r'^error: cannot run the neurons: LIF backend .*, asked for by') as stop:
            train(*SMALL, *option, '--output', tmp_path / 'out')
        assert '\n' not in str(stop.value) and not (tmp_path / 'out').exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU has float16')
    def test_float16_on_a_cpu_is_refused(self, train, tmp_path, monkeypatch):
        """Accelerate would train in float32."""
        monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'fp16')
        with pytest.raises(SystemExit, match='error: mixed precision fp16 needs a GPU: pass --mixed-precision bf16'):
            train(*SMALL, '--output', tmp_path / 'out')
        assert not (tmp_path / 'out').exists()

    @pytest.mark.slow
    def test_a_compiled_model_learns_and_is_saved_as_usual(self, train, tmp_path):
        train(*SMALL, '--max-steps', '1', '--compile', '--output', tmp_path)
        assert abs(float(rows(tmp_path)[0]['train_loss']) - 2.305) < 0.02
        assert weights(tmp_path).keys() == timm.create_model('msvit_4_96').state_dict().keys()


class TestSplits:
    def test_an_epoch_is_picked_by_held_out_samples_and_tested_once(self, train, tmp_path):
        arguments = ['--val-fraction', '0.25', '--epochs', '3', '--checkpoint-hist', '1', '--max-val-samples', '200']
        printed = train(*SMALL, *arguments, '--output', tmp_path)
        accuracies = [float(row['eval_top1']) for row in rows(tmp_path)]
        best = accuracies.index(max(accuracies)) + 1
        assert f'epoch_{best:04d} was the best on 200 held-out training samples; on 200 to test with' in printed
        checkpoint = load_file(tmp_path / 'checkpoints' / f'epoch_{best:04d}' / 'model.safetensors')
        assert torch.equal(weights(tmp_path)['head.fc.weight'], checkpoint['head.fc.weight'])
        result = json.loads((tmp_path / 'test.json').read_text())
        assert (result['epoch'], result['samples']) == (best, 200)
        assert printed.endswith(f'top-1: {result["top1"]:.2f}\n')

    @pytest.mark.parametrize('text', ['0/5', '6/5', '1/1', '2', 'a/b'])
    def test_folds_that_do_not_exist_are_refused(self, train, text):
        with pytest.raises(SystemExit, match=f"argument --fold: '{text}' is not like 2/5"):
            train('--fold', text)


class TestLogs:
    def test_tensorboard_has_curves_and_firing_rates(self, finished):
        (events,) = (finished / 'logs' / 'timm_snn').glob('events.out.tfevents*')
        log = EventAccumulator(str(events.parent)).Reload()
        (row,) = rows(finished)
        assert {'loss', 'lr', 'gradient', 'eval_top1', 'eval_rate_stem', 'eval_rate_stages.0'} <= set(
            log.Tags()['scalars']
        )
        (top1,) = log.Scalars('eval_top1')
        assert top1.step == 22 and top1.value == pytest.approx(float(row['eval_top1']))

    def test_firing_rates_are_those_of_the_profiler(self, finished):
        (row,) = rows(finished)
        model = timm.create_model(f'local-dir:{finished / "model"}', pretrained=True).eval()
        digits = Digits(train=False)
        report = timm_snn.profile(model, digits, num_samples=64, progress=False)
        for stage in report.stages:
            if stage.firing_rate is not None:
                assert float(row[f'eval_rate_{stage.name}']) == pytest.approx(stage.firing_rate, rel=0.05, abs=1e-4)

    @pytest.mark.parametrize('name', ['wandb', 'abacus'])
    def test_a_tracker_that_is_not_there_is_refused(self, train, tmp_path, monkeypatch, name):
        monkeypatch.setattr('accelerate.tracking.is_wandb_available', lambda: False)
        with pytest.raises(SystemExit, match=f"cannot log with '{name}'.*install it, or pass --log-with none"):
            train(*SMALL, '--log-with', name, '--output', tmp_path)

    def test_none_logs_nothing(self, train, tmp_path):
        train(*SMALL, '--log-with', 'none', '--max-steps', '1', '--output', tmp_path)
        assert not (tmp_path / 'logs').exists()


def test_the_model_is_uploaded(train, hub, tmp_path):
    printed = train(*SMALL, '--max-steps', '1', '--push-to-hub', 'lab/digits', '--output', tmp_path)
    assert 'uploaded: http' in printed
    assert hub.files('lab/digits') == {path.name: path.read_bytes() for path in (tmp_path / 'model').iterdir()}


def test_a_hub_that_does_not_answer_is_found_out_before_training(train, hub, tmp_path, capsys):
    hub.stop()
    with pytest.raises(SystemExit, match=r"^error: cannot make the repository 'lab/digits': ") as stop:
        train(*SMALL, '--push-to-hub', 'lab/digits', '--output', tmp_path / 'out')
    assert '\n' not in str(stop.value) and 'epoch' not in capsys.readouterr().out.replace('epochs', '')
