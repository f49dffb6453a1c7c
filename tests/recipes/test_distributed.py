"""recipes/train.py in several processes, over gloo on the CPU."""

import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.processes import Script
from tests.support.training import QUICK, TRAIN, weights

READS = """
import os
from timm_snn.training import data
read = data.Digits.__getitem__
def spy(self, index):
    with open(f'{os.environ["SPY"]}.{os.environ["RANK"]}', 'a') as file:
        print(len(self), index, file=file)
    return read(self, index)
data.Digits.__getitem__ = spy
"""

# Float64, and batch norms with fixed statistics with which all neurons fire sometimes.
FIXED = """
import timm, torch
create = timm.create_model
def fixed(*args, **kwargs):
    model = create(*args, **kwargs).double()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    torch.manual_seed(0)
    for norm in norms:
        torch.nn.init.uniform_(norm.weight, 0.8, 1.6)
        torch.nn.init.uniform_(norm.bias, 0.5, 1.2)
        norm.running_var.fill_(0.5)
    class Fixed(type(model)):
        def train(self, mode=True):
            super().train(mode)
            for module in self.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()
            return self
        def forward(self, x):
            return super().forward(x.double())
    model.__class__ = Fixed
    return model
timm.create_model = fixed
"""

# Accelerate shards over GPUs alone; this makes it do so over processes on the CPU.
SHARDED = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
init = AcceleratorState.__init__
def sharded(self, *args, **kwargs):
    first = not self.initialized
    init(self, *args, **kwargs)
    if first:
        self.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy='no_wrap')
        PartialState._shared_state['distributed_type'] = self.distributed_type = DistributedType.FSDP
AcceleratorState.__init__ = sharded
"""


# One validation image, the first of the second process.
BROKEN = """
from timm_snn.training import data
read = data.Digits.__getitem__
def broken(self, index):
    if len(self) == 360 and index == 64:
        raise OSError('torn')
    return read(self, index)
data.Digits.__getitem__ = broken
"""


def start(folder: Path, before: str, processes: int, *arguments: object, **environment: str) -> Any:
    """Run the script in so many processes as torchrun starts them, after some code in each."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    world = {'WORLD_SIZE': processes, 'LOCAL_WORLD_SIZE': processes, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    ranks = []
    for rank in range(processes):
        printed = folder / f'rank_{rank}'
        printed.mkdir(exist_ok=True)
        settings = {**world, 'RANK': rank, 'LOCAL_RANK': rank, 'ACCELERATE_USE_CPU': 1, **environment}
        env = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        ranks.append(Script([TRAIN, *arguments], printed, before=before, env=env))
    printed = [rank.communicate() for rank in ranks]
    stdout, stderr = (''.join(parts) for parts in zip(*printed, strict=True))
    return SimpleNamespace(returncodes=[rank.returncode for rank in ranks], stdout=stdout, stderr=stderr)


def launch(folder: Path, before: str, processes: int, *arguments: object, **environment: str) -> str:
    """The same of what must not fail; returns what was printed."""
    result = start(folder, before, processes, *arguments, **environment)
    assert not any(result.returncodes), result.stderr[-3000:]
    return result.stdout


def test_two_processes_share_the_images_and_count_every_one(tmp_path):
    """Started by torchrun, as the README has it."""
    sizes = ['--epochs', '1', '--batch-size', '32', '--max-train-samples', '200']
    run = f"import runpy, sys; sys.argv = sys.argv[1:]\n{READS}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    (tmp_path / 'script.py').write_text(run)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
    result = subprocess.run(
        [*torchrun, str(tmp_path / 'script.py'), str(TRAIN), *QUICK, *sizes, '--output', str(tmp_path / 'out')],
        env={**os.environ, 'ACCELERATE_USE_CPU': '1', 'SPY': str(tmp_path / 'read')},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    printed = result.stdout
    assert 'effective batch 64' in printed and printed.count('top-1: ') == 1

    read = [[line.split() for line in (tmp_path / f'read.{rank}').read_text().splitlines()] for rank in '01']
    training = [[index for size, index in lines if size == '1437'][1:] for lines in read]  # [0] looks at a sample
    assert [len(set(indices)) for indices in training] == [96, 96]
    assert len({*training[0], *training[1]}) == 192  # all but the last batch, which is not full
    assert len({index for lines in read for size, index in lines if size == '360'}) == 360
    (row,) = csv.DictReader((tmp_path / 'out' / 'summary.csv').open())
    hits = float(row['eval_top1']) * 360 / 100
    assert hits == pytest.approx(round(hits), abs=1e-6)


def test_processes_and_accumulation_give_the_weights_of_one_process(tmp_path):
    """With the same effective batch. The samples of each update are the same, and so is what is drawn for them."""
    arguments = [*QUICK, '--opt', 'sgd', '--lr', '0.1', '--max-train-samples', '140', '--reprob', '0.3']
    arguments += ['--max-val-samples', '37']

    def train(name: str, processes: int, batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
        sizes = ['--batch-size', batch_size, '--grad-accum-steps', accumulation, '--output', tmp_path / name]
        printed = launch(tmp_path, FIXED, processes, *arguments, *sizes)
        assert 'effective batch 32 ' in printed
        return weights(tmp_path / name)

    one = train('one', 1, 32, 1)
    assert one['head.fc.weight'].dtype == torch.float64
    for name, batch_size, accumulation in (('two', 16, 1), ('accumulated', 8, 2)):
        several = train(name, 2, batch_size, accumulation)
        for key in one:
            torch.testing.assert_close(several[key], one[key], rtol=1e-9, atol=1e-11)
        row, again = (list(csv.DictReader((tmp_path / run / 'summary.csv').open()))[-1] for run in ('one', name))
        assert float(row['train_loss']) == pytest.approx(float(again['train_loss']), rel=1e-9)
        assert row['eval_top1'] == again['eval_top1'] and row['train_top1'] == again['train_top1']


def test_shards_of_uneven_size_count_every_sample_once(tmp_path):
    arguments = [*QUICK, '--max-steps', '1', '--batch-size', '16', '--max-val-samples', '37', '--warmup-epochs', '0']
    for processes in (1, 2):
        launch(tmp_path, FIXED, processes, *arguments, '--lr', '0', '--output', tmp_path / str(processes))
    one, two = (next(csv.DictReader((tmp_path / name / 'summary.csv').open())) for name in '12')
    assert float(two['eval_top1']) == float(one['eval_top1']) and float(one['eval_top1']) * 37 % 1 == pytest.approx(0)
    assert float(two['eval_loss']) == pytest.approx(float(one['eval_loss']), rel=1e-12)


def test_sharded_weights_are_saved_whole_and_resumed(tmp_path):
    sizes = ['--batch-size', '16', '--max-train-samples', '64', '--max-val-samples', '37']
    arguments = [*QUICK, *sizes, '--output', tmp_path / 'out']
    environment = {'ACCELERATE_USE_FSDP': 'true', 'FSDP_VERSION': '2'}
    launch(tmp_path, SHARDED, 2, *arguments, '--epochs', '1', **environment)
    assert (tmp_path / 'out' / 'checkpoints' / 'epoch_0001' / 'pytorch_model_fsdp_0').is_dir()  # it was sharded
    before = weights(tmp_path / 'out')
    printed = launch(tmp_path, SHARDED, 2, *arguments, '--resume', 'auto', **environment)
    after = weights(tmp_path / 'out')
    assert 'epochs 2 to 2' in printed and before.keys() == after.keys()
    assert not torch.equal(before['head.fc.weight'], after['head.fc.weight'])


def test_an_image_that_one_process_cannot_read_stops_all_and_loses_nothing(tmp_path):
    arguments = [*QUICK, '--max-train-samples', '128', '--epochs', '1', '--output', tmp_path / 'out']
    result = start(tmp_path, BROKEN, 2, *arguments)
    saved = 'epoch_0000_step_000001'
    assert sorted(result.returncodes) == [1, 128 + signal.SIGTERM]
    assert 'stopped by another process; --resume auto goes on from' in result.stdout
    assert 'error: cannot evaluate: sample 64 is unreadable, OSError: torn' in result.stderr
    assert [path.name for path in (tmp_path / 'out' / 'checkpoints').iterdir()] == [saved]
    printed = launch(tmp_path, '', 2, *arguments, '--resume', 'auto')
    assert 'top-1: ' in printed and 'random states' not in printed
