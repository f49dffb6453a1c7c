"""What happens to long runs, done to short ones: killed, told to stop, out of disk, damaged, diverged."""

import contextlib
import json
import math
import shutil
import signal
import subprocess
from pathlib import Path

import accelerate
import pytest
import safetensors.torch
import timm
import torch
import yaml

import timm_snn
from tests.support.damage import cut, flip_a_bit
from tests.support.kills import killed_at_change
from tests.support.processes import Script, run_script
from tests.support.scripts import load
from tests.support.training import QUICK, TRAIN, assert_same_run, assert_same_weights, weights
from timm_snn.training.checkpoints import damage, write_manifest
from timm_snn.training.data import Samples, TrainingSamples
from timm_snn.training.tables import read_csv

# All that has a state: augmentation, mixing, stochastic depth, averaging, accumulation. 10 updates an epoch.
STATEFUL = [
    *('--mixup', '0.2', '--reprob', '0.2', '--aa', 'rand-m3-inc1', '--drop-path', '0.1', '--model-ema'),
    *('--model-ema-decay', '0.9', '--batch-size', '32', '--grad-accum-steps', '2', '--max-train-samples', '640'),
    *('--max-val-samples', '37'),
]
COMMAND = [TRAIN, *QUICK, *STATEFUL, '--checkpoint-steps', '2']


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    """The output of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp('whole')
    run_script([*COMMAND, '--workers', '0', '--output', folder / 'run'], folder, check=True)
    return folder / 'run'


def go_on(output: Path, *arguments: str, before: str = '') -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, '--workers', '2', '--output', output, '--resume', 'auto', *arguments]
    return run_script(command, output.parent, before=before)


def test_a_run_killed_again_and_again_ends_with_the_same_weights(whole, tmp_path):
    """Also with other numbers of data loading processes. `python -m tests.campaign --only kills` tries more."""
    output = tmp_path / 'run'
    for number in (30, 70, 45):
        killed = go_on(output, '--log-with', 'none', before=killed_at_change(output, number))
        assert killed.returncode == -signal.SIGKILL
    assert 'top-1: ' in go_on(output).stdout
    assert_same_run(whole, output)


# The data loading processes get it too, as under SLURM.
SIGTERM_AFTER_THREE_UPDATES = """
import os, signal
from timm_snn.training.progress import Progress
add_update = Progress.add_update
def add_update_and_signal(self, *numbers):
    add_update(self, *numbers)
    if self.updates == 3:
        os.killpg(0, signal.SIGTERM)
Progress.add_update = add_update_and_signal
"""


def test_sigterm_saves_and_exits(whole, tmp_path):
    output = tmp_path / 'run'
    stopped = go_on(output, '--checkpoint-steps', '1000', before=SIGTERM_AFTER_THREE_UPDATES)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stdout
    (saved,) = (output / 'checkpoints').iterdir()
    assert f'stopped by SIGTERM; --resume auto goes on from {saved}' in stopped.stdout and '_step_' in saved.name
    go_on(output)
    assert_same_run(whole, output)


# To all of its processes, as a terminal does; those that load data are not to be seen afterwards.
CTRL_C_AFTER_THREE_UPDATES = (
    SIGTERM_AFTER_THREE_UPDATES.replace('SIGTERM', 'SIGINT')
    + """
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
)


def processes_of_session(session: int) -> list[str]:
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # it ended
            state, _, _, its_session, *_ = stat.read_text().rpartition(') ')[2].split()
            if int(its_session) == session and state != 'Z':
                found.append(stat.parent.name)
    return found


def test_ctrl_c_saves_and_says_how_to_go_on(whole, tmp_path):
    output = tmp_path / 'run'
    arguments = ['--checkpoint-steps', '1000', '--quiet', '--json']
    script = Script(
        [*COMMAND, '--workers', '2', '--output', output, *arguments], tmp_path, before=CTRL_C_AFTER_THREE_UPDATES
    )
    stdout, stderr = script.communicate()
    assert script.returncode == 130, stderr
    assert processes_of_session(script.pid) == []
    (saved,) = (output / 'checkpoints').iterdir()
    first, line = stderr.strip().splitlines()
    assert first.startswith('Ctrl-C: stops after this update') and '_step_' in saved.name
    assert line.startswith(f'stopped: {saved} is saved; go on with: python {TRAIN} ') and line.endswith(
        ' --resume auto'
    )
    assert stdout == ''
    told = json.loads(go_on(output, '--quiet', '--json').stdout)
    assert told['output'] == str(output) and told['last_epoch']['epoch'] == 1 and told['tested'] is None
    assert_same_run(whole, output)


def test_ctrl_c_before_the_first_update_is_one_line(tmp_path):
    """As while data are read, where nobody waits for an update."""
    before = """
import signal
from timm_snn.training import data
signal.signal(signal.SIGINT, signal.default_int_handler)
data.Digits.__init__ = lambda *_: signal.raise_signal(signal.SIGINT)
"""
    stopped = go_on(tmp_path / 'run', before=before)
    assert stopped.returncode == 130 and 'Traceback' not in stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith('stopped: the newest checkpoint stays; go on with: python ')


def test_a_finished_run_says_so(train, output):
    printed = train(*QUICK, '--epochs', '1', '--output', output, '--resume', 'auto')
    assert 'nothing left to train' in printed and printed.splitlines()[-1].startswith('top-1: ')


def test_a_run_killed_between_its_last_checkpoint_and_its_summary_writes_that(train, output):
    summary = output / 'summary.csv'
    written = summary.read_text()
    summary.unlink()
    train(*QUICK, '--epochs', '1', '--output', output, '--resume', 'auto')
    assert summary.read_text() == written


def test_a_checkpoint_that_was_not_finished_is_not_used(train, output):
    unfinished = output / 'checkpoints' / 'unfinished'
    unfinished.mkdir()
    (unfinished / 'model.safetensors').write_bytes(b'torn')
    assert 'epochs 2 to 2' in train(*QUICK, '--output', output, '--resume', 'auto')
    assert sorted(path.name for path in (output / 'checkpoints').iterdir()) == ['epoch_0001', 'epoch_0002']


def test_the_one_before_a_damaged_checkpoint_is_used(train, output):
    newest = shutil.copytree(output / 'checkpoints' / 'epoch_0001', output / 'checkpoints' / 'epoch_0001_step_000007')
    cut(newest / 'optimizer.bin')
    printed = train(*QUICK, '--output', output, '--resume', 'auto', '--max-steps', '23')
    assert f'warning: checkpoint {newest} is damaged and not used: optimizer.bin has' in printed
    assert 'epochs 2 to 2' in printed
    names = sorted(path.name for path in (output / 'checkpoints').iterdir())
    assert names == ['damaged_epoch_0001_step_000007', 'epoch_0001', 'epoch_0001_step_000001']


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(train, output):
    flip_a_bit(output / 'checkpoints' / 'epoch_0001' / 'model.safetensors')
    with pytest.raises(SystemExit, match=f'error: no checkpoint in {output} is whole; pass --overwrite without'):
        train(*QUICK, '--output', output, '--resume', 'auto')
    assert (output / 'checkpoints' / 'epoch_0001').is_dir()


def test_checkpoints_that_do_not_fit_are_refused_in_one_line(train, output, tmp_path, monkeypatch):
    newest = output / 'checkpoints' / 'epoch_0001'

    def refused(*arguments, match: str) -> None:
        with pytest.raises(SystemExit, match=match) as stop:
            train(*QUICK, '--output', output, '--resume', 'auto', *arguments)
        assert '\n' not in str(stop.value)

    refused('--weight-decay', '0.5', '--seed', '7', match='these changed: weight_decay 0.05 to 0.5, seed 42 to 7')
    refused('--model-kwargs', 'depths=(1,1,1)', match=r'changed: model_kwargs \{\} to .*depths')
    refused('--batch-size', '32', match='these changed: effective_batch 64 to 32')
    refused('--resume', output / 'model', match='holds other checkpoints')
    refused('--resume', output / 'model', '--output', tmp_path / 'new', match=r'has no manifest.json; --resume takes')
    monkeypatch.setenv('ACCELERATE_MIXED_PRECISION', 'bf16')
    refused(match="these changed: mixed_precision 'no' to 'bf16'")
    monkeypatch.delenv('ACCELERATE_MIXED_PRECISION')
    flip_a_bit(newest / 'model.safetensors')
    refused('--resume', newest, match=f'cannot read checkpoint {newest}: model.safetensors is not what was written')


@pytest.mark.parametrize('harm', [Path.unlink, lambda path: path.write_text('')])
def test_a_run_goes_on_without_its_config(train, output, harm):
    """A kill may come while it is written, by earlier versions; what is needed is in the checkpoint."""
    config = output / 'config.yaml'
    harm(config)
    with pytest.raises(SystemExit, match='these changed: seed 42 to 7'):
        train(*QUICK, '--output', output, '--resume', 'auto', '--seed', '7')
    assert 'nothing left to train' in train(*QUICK, '--output', output, '--resume', 'auto', '--epochs', '1')
    assert yaml.safe_load(config.read_text())['seed'] == 42


def test_a_run_does_not_go_on_with_other_training_data(train, output):
    setup = output / 'checkpoints' / 'epoch_0001' / 'setup.json'
    found = json.loads(setup.read_text())
    arguments = [*QUICK, '--output', output, '--resume', 'auto', '--epochs', '1']

    def declare(split: str, **facts: object) -> None:
        other = found['data'] | {split: found['data'][split] | facts}
        setup.write_text(json.dumps(found | {'data': other}))
        (setup.parent / 'manifest.json').unlink()
        write_manifest(setup.parent)

    declare('training', classes=['cat', 'dog'])
    with pytest.raises(SystemExit, match=r'the training data has the classes .* and had cat, dog: ') as stop:
        train(*arguments)
    assert '\n' not in str(stop.value)
    declare('training', samples=7)
    with pytest.raises(SystemExit, match='the training data has 1437 samples and had 7: '):
        train(*arguments)
    declare('validation', samples=7)
    assert 'warning: the validation data has 360 samples and had 7; the run goes on with it' in train(*arguments)
    setup.write_text(json.dumps({key: value for key, value in found.items() if key != 'data'}))  # an earlier version's
    (setup.parent / 'manifest.json').unlink()
    write_manifest(setup.parent)
    assert 'warning' not in train(*arguments)


def test_a_validation_sample_with_nan_is_named_and_the_run_goes_on(train, tmp_path, monkeypatch):
    arguments = [*QUICK, '--epochs', '1', '--max-train-samples', '64', '--max-val-samples', '37', '--output', tmp_path]
    arguments += ['--workers', '0', '--warmup-epochs', '0']

    class Spoiled(Samples):
        def __getitem__(self, number):
            image, label = super().__getitem__(number)
            return image * (math.nan if number == 5 else 1), label

    load('recipes/train.py')  # the classes of what it imports are not made of the spoiled one
    with monkeypatch.context() as patch:
        patch.setattr('timm_snn.training.data.Samples', Spoiled)
        match = r'cannot evaluate: sample \d+ has pixels that are not finite .*; --resume auto goes on from .*_step_'
        with pytest.raises(SystemExit, match=match) as stop:
            train(*arguments)
    assert '\n' not in str(stop.value)
    assert 'top-1: ' in train(*arguments, '--resume', 'auto')


def test_a_full_disk_ends_in_one_line_and_leaves_what_was_saved(output, tmp_path):
    """A limit on the size of files stands for it: the system refuses to write, in the same place."""
    limit = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))'
    command = [TRAIN, *QUICK, '--max-steps', '23', '--output', output, '--resume', 'auto']
    result = run_script(command, tmp_path, before=limit)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and last.startswith(
        f'error: cannot write checkpoint {output}/checkpoints/epoch_0001_s'
    )
    assert 'File too large' in last and last.endswith('; those before it are kept, for --resume auto')
    assert [path.name for path in (output / 'checkpoints').iterdir()] == ['epoch_0001']
    assert damage(output / 'checkpoints' / 'epoch_0001') is None


def test_a_loss_that_is_not_finite_stops_and_leaves_what_is_needed(train, tmp_path):
    with pytest.raises(SystemExit) as stop:
        train(*QUICK, '--lr', '1e30', '--warmup-epochs', '0', '--output', tmp_path)
    failed = tmp_path / 'failed'
    facts = json.loads((failed / 'facts.json').read_text())
    assert f'in {facts["where"]}; the state before it and its batch are in {failed}' in str(stop.value)
    assert '\n' not in str(stop.value) and 'of epoch 1' in facts['where']
    batch = safetensors.torch.load_file(failed / 'batch_0.safetensors')
    assert batch['images'].shape == (64, 1, 16, 16) and batch['labels'].shape == (64,)
    state = safetensors.torch.load_file(failed / 'state' / 'model.safetensors')
    assert state['head.fc.weight'].abs().max() < 1e35 and not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize('loss', [[], ['--tet', '0.1']])
def test_the_advice_after_a_loss_that_is_not_finite_works(train, tmp_path, monkeypatch, loss):
    arguments = [*QUICK, *loss, '--max-train-samples', '192', '--epochs', '1']
    steps = timm_snn.MSViT.forward_steps
    calls = []

    def breaks_at_the_third(self, x):
        calls.extend([len(x)] * self.training)  # the run is measured before it begins
        return steps(self, x) * (float('nan') if len(calls) == 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(timm_snn.MSViT, 'forward', lambda self, x: self.forward_steps(x).mean(1))
        patch.setattr(timm_snn.MSViT, 'forward_steps', breaks_at_the_third)
        with pytest.raises(SystemExit, match=r'loss nan.* in update 3 of epoch 1; .* lower --lr') as stop:
            train(*arguments, '--output', tmp_path / 'out')
    advice = str(stop.value).split('pass ')[1].removesuffix(' too').replace('NEW', str(tmp_path / 'new')).split()
    assert '--checkpoint' in advice
    printed = train(*arguments, *advice, '--lr', '0', '--warmup-epochs', '0', '--min-lr', '0')
    assert 'top-1: ' in printed
    state = safetensors.torch.load_file(tmp_path / 'out' / 'failed' / 'state' / 'model.safetensors')
    prefix = 'module.' if loss else ''
    assert torch.equal(weights(tmp_path / 'new')['head.fc.weight'], state[f'{prefix}head.fc.weight'])


def test_gradients_that_no_scale_makes_finite_stop(train, tmp_path, monkeypatch):
    """A scaler for float16 halves its scale for ever; the CPU's stands for that of a GPU."""
    init = accelerate.Accelerator.__init__

    def with_scaler(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler('cpu', init_scale=8.0)

    monkeypatch.setattr(accelerate.Accelerator, '__init__', with_scaler)
    monkeypatch.setattr(accelerate.Accelerator, 'clip_grad_norm_', lambda *_: torch.tensor(math.inf))
    monkeypatch.setattr(torch.amp.GradScaler, '_unscale_grads_', lambda *_: {torch.device('cpu'): torch.tensor([1.0])})
    with pytest.raises(SystemExit, match='gradient norm inf in update 5 of epoch 1; the state before it'):
        train(*QUICK, '--clip-grad', '1', '--output', tmp_path)


def test_a_run_of_max_steps_goes_on_with_more(tmp_path):
    """In processes of their own, as users run it: after a thousand other tests in one, rounding once differed."""
    sizes = ['--max-train-samples', '320', '--max-val-samples', '37']

    def run(*arguments: object) -> str:
        return run_script([TRAIN, *QUICK, *sizes, *arguments], tmp_path, check=True).stdout

    run('--output', tmp_path / 'whole', '--max-steps', '7')
    run('--output', tmp_path / 'parts', '--max-steps', '3')
    printed = run('--output', tmp_path / 'parts', '--max-steps', '7', '--resume', 'auto')
    assert 'epochs 1 to 2' in printed
    assert_same_weights(tmp_path / 'whole', tmp_path / 'parts')


def test_images_on_the_device_are_augmented_alike_after_a_stop(train, tmp_path):
    """What is drawn for a sample depends on the seed, the epoch and the sample; also with accumulation and mixing."""
    arguments = [
        *QUICK,
        '--data-on-device',
        '--max-train-samples',
        '160',
        '--max-val-samples',
        '37',
        '--batch-size',
        '16',
    ]
    arguments += ['--grad-accum-steps', '2', '--reprob', '0.5', '--color-jitter', '0.4', '--mixup', '0.2']
    train(*arguments, '--output', tmp_path / 'whole', '--max-steps', '6')
    train(*arguments, '--output', tmp_path / 'parts', '--max-steps', '3')
    train(*arguments, '--output', tmp_path / 'parts', '--max-steps', '6', '--resume', 'auto')
    assert_same_weights(tmp_path / 'whole', tmp_path / 'parts')


def test_a_run_of_several_phases_goes_on_as_if_never_stopped(train, tmp_path, monkeypatch):
    seen, forward = [], timm_snn.MSViT.forward

    def spy(self, x):
        seen.append((self.training, self.num_steps, *x.shape[2:]))
        return forward(self, x)

    arguments = [*QUICK, '--data-on-device', '--max-train-samples', '192', '--max-val-samples', '37']
    arguments += ['--epochs', '3', '--num-steps-schedule', '0=1', '2=2', '--model-kwargs', 'num_steps=2']
    arguments += ['--img-size-schedule', '0=8', '0.34=16', '--pad-crop', '2', '--cutout', '3', '--max-steps', '8']
    arguments += ['--scale', '0.08', '1', '--ratio', 0.75, 4 / 3]  # the defaults: --pad-crop refuses others
    monkeypatch.setattr(timm_snn.MSViT, 'forward', spy)
    printed = train(*arguments, '--output', tmp_path / 'whole')
    assert [steps for training, *steps in seen if training] == [[1, 8, 8]] * 3 + [[1, 16, 16]] * 3 + [[2, 16, 16]] * 2
    assert {(steps, height) for training, steps, height, _ in seen if not training} == {(2, 16), (1, 8), (1, 16)}
    assert 'from epoch 3 with T=2, 16 x 16 px; validated and saved with T=2, 16 x 16 px' in printed
    for steps in ('4', '8'):
        train(*arguments, '--max-steps', steps, '--output', tmp_path / 'parts', '--resume', 'auto')
    assert_same_weights(tmp_path / 'whole', tmp_path / 'parts')
    whole, parts = (read_csv(tmp_path / name / 'summary.csv') for name in ('whole', 'parts'))
    for name in ('images_seen', 'train_flop', 'train_num_steps', 'train_img_size', 'eval_num_steps', 'eval_top1'):
        assert [row.get(name) for row in parts] == [row.get(name) for row in whole]
    assert [float(row['images_seen']) for row in parts] == [192, 384, 512]
    assert 0 < float(parts[0]['train_seconds']) < float(parts[1]['train_seconds']) < float(parts[2]['train_seconds'])
    assert timm.create_model(f'local-dir:{tmp_path / "whole" / "model"}', pretrained=True).num_steps == 2


def test_what_cannot_be_done_on_the_device_is_refused_before_training(train, tmp_path):
    with pytest.raises(SystemExit, match='no policy such as --aa rand-m3-inc1'):
        train(*QUICK, '--data-on-device', '--aa', 'rand-m3-inc1', '--output', tmp_path)


def test_a_run_may_stop_at_the_end_of_an_epoch(train, tmp_path):
    arguments = [*QUICK, '--max-train-samples', '128', '--max-val-samples', '37', '--max-steps', '2']
    printed = train(*arguments, '--output', tmp_path)
    assert 'epoch 1/2' in printed and 'epoch 2/2' not in printed
    assert [path.name for path in (tmp_path / 'checkpoints').iterdir()] == ['epoch_0001']


def test_other_batches_of_the_same_effective_batch_go_on_with_the_same_samples(train, tmp_path, monkeypatch):
    """As on hardware with less memory, or with another number of processes."""
    read, get = [], TrainingSamples.__getitem__
    monkeypatch.setattr(TrainingSamples, '__getitem__', lambda self, i: read.append(i) or get(self, i))
    arguments = [*QUICK, '--max-train-samples', '256', '--max-val-samples', '37', '--epochs', '1', '--workers', '0']
    train(*arguments, '--output', tmp_path / 'whole')
    whole, read[:] = read[-256:], []
    train(*arguments, '--output', tmp_path / 'parts', '--max-steps', '2')
    read.clear()
    other = ['--batch-size', '16', '--grad-accum-steps', '4']
    printed = train(*arguments, '--output', tmp_path / 'parts', '--resume', 'auto', *other)
    assert 'effective batch 64 (16 x 1 processes x 4 accumulated)' in printed
    assert read[-128:] == whole[128:]


def test_random_states_that_are_not_restored_are_told(train, output):
    checkpoint = output / 'checkpoints' / 'epoch_0001'
    arguments = [*QUICK, '--max-steps', '23', '--output', output, '--resume', 'auto']

    def declare_whole() -> None:
        (checkpoint / 'manifest.json').unlink()
        write_manifest(checkpoint)

    states = checkpoint / 'random_states_0.pkl'
    content = states.read_bytes()
    states.write_bytes(b'nonsense')
    declare_whole()
    with pytest.raises(SystemExit, match=f'cannot read checkpoint {checkpoint}: '):
        train(*arguments)
    states.unlink()
    declare_whole()
    assert 'has not the random states of process 0 (all), which go on from the seed' in train(*arguments)
    states.write_bytes(content)
    declare_whole()
    shutil.rmtree(output / 'checkpoints' / 'epoch_0001_step_000001')
    assert 'random states' not in train(*arguments)


def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(train, output):
    shutil.rmtree(output / 'checkpoints')
    with pytest.raises(SystemExit, match='holds a finished run without checkpoints; pass --overwrite without --resume'):
        train(*QUICK, '--output', output, '--resume', 'auto')
    assert (output / 'model').is_dir()
