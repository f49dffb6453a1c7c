"""recipes/accelerate_configs and recipes/slurm: what they would start, on machines that the tests do not have."""

import contextlib
import csv
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch.distributed.run
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file

from tests.support.processes import run_script
from tests.support.scripts import ROOT
from tests.support.training import QUICK, TRAIN

YAMLS = sorted((ROOT / 'recipes' / 'accelerate_configs').glob('*.yaml'))
SBATCH = ROOT / 'recipes' / 'slurm' / 'train.sbatch'


def started(
    yaml: str, monkeypatch, *arguments: str, script: Sequence[object] = ('train.py', '--epochs', '1')
) -> SimpleNamespace:
    """What `accelerate launch` gives to the process it starts, or to torch's launcher where it starts several."""
    seen = SimpleNamespace()

    class Process:
        returncode = 0

        def __init__(self, command, env):
            seen.command, seen.env = command, env

        def wait(self):
            pass

    def run(args):
        seen.args, seen.env = args, dict(os.environ)

    monkeypatch.setattr(launch.subprocess, 'Popen', Process)
    monkeypatch.setattr(torch.distributed.run, 'run', run)
    config = ['--config_file', str(ROOT / 'recipes' / 'accelerate_configs' / yaml)]
    launch.launch_command(launch.launch_command_parser().parse_args([*config, *arguments, *map(str, script)]))
    return seen


def test_there_are_four():
    assert [path.name for path in YAMLS] == ['cpu.yaml', 'gpu_1.yaml', 'gpu_8.yaml', 'nodes_2.yaml']


@pytest.mark.parametrize('path', YAMLS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == {'cpu': 1, 'gpu_1': 1, 'gpu_8': 8, 'nodes_2': 16}[path.stem]
    assert config.mixed_precision == ('no' if path.stem == 'cpu' else 'bf16')


def test_cpu_and_one_gpu_start_one_process(monkeypatch):
    for yaml, on_cpu, precision in (('cpu.yaml', 'True', 'no'), ('gpu_1.yaml', 'False', 'bf16')):
        seen = started(yaml, monkeypatch)
        assert seen.command == [sys.executable, 'train.py', '--epochs', '1']
        assert (seen.env['ACCELERATE_USE_CPU'], seen.env['ACCELERATE_MIXED_PRECISION']) == (on_cpu, precision)


def test_eight_gpus_start_eight_processes_on_one_machine(monkeypatch):
    seen = started('gpu_8.yaml', monkeypatch)
    assert (seen.args.nnodes, seen.args.nproc_per_node) == ('1:1', '8')
    assert seen.args.training_script_args == ['--epochs', '1']
    assert seen.env['ACCELERATE_MIXED_PRECISION'] == 'bf16' and 'CUDA_VISIBLE_DEVICES' not in seen.env
    four = started('gpu_8.yaml', monkeypatch, '--num_processes', '4', '--mixed_precision', 'fp16')
    assert (four.args.nproc_per_node, four.env['ACCELERATE_MIXED_PRECISION']) == ('4', 'fp16')


@pytest.mark.parametrize('rank', [0, 1])
def test_two_nodes_start_eight_processes_each(monkeypatch, rank):
    seen = started('nodes_2.yaml', monkeypatch, '--main_process_ip', '127.0.0.1', '--machine_rank', str(rank))
    assert (seen.args.nnodes, seen.args.nproc_per_node, seen.args.node_rank) == ('2', '8', rank)
    assert (seen.args.rdzv_backend, seen.args.rdzv_endpoint) == ('static', '127.0.0.1:29500')
    assert seen.env['ACCELERATE_MIXED_PRECISION'] == 'bf16'


def test_training_runs_on_the_cpu(tmp_path, monkeypatch):
    tiny = [*QUICK, '--max-steps', '1', '--max-val-samples', '8', '--log-with', 'none']
    seen = started('cpu.yaml', monkeypatch, script=[TRAIN, *tiny, '--output', tmp_path / 'out'])
    assert seen.command[0] == sys.executable
    printed = run_script(seen.command[1:], tmp_path, env=seen.env, check=True).stdout
    assert 'effective batch 64 (64 x 1 processes x 1 accumulated)' in printed and ', cpu\n' in printed
    assert 'top-1: ' in printed.splitlines()[-1] and (tmp_path / 'out' / 'model' / 'model.safetensors').is_file()


# Stand-ins for SLURM's commands. A step is a process group on each node, and TERM goes to all of its processes.
SLURM = {
    'srun': """
while [[ $1 == --* ]]; do echo "srun $1" >> log; shift; done
groups=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node setsid --wait bash -c 'echo $$ > "node.$SLURM_NODEID"; exec "$@"' node "$@" &
    groups+=($!)
done
status=0
for group in "${groups[@]}"; do wait "$group" || status=1; done
exit $status
""",
    'scontrol': """
if [[ $1 == show ]]; then printf '%s\\n' 127.0.0.1 second; else echo "scontrol $*" >> log; fi
""",
    'scancel': """
echo "scancel $*" >> log
for file in node.*; do kill -TERM -- "-$(cat "$file")"; done
""",
}
ACCELERATE = f"""
exec {shlex.quote(sys.executable)} -m accelerate.commands.accelerate_cli "$@"
"""
# A training that ends when it is told to, or fails, or is done.
QUICK_ACCELERATE = """
trap 'echo saved >> log; exit 1' TERM
printf '%s\\n' "$@" > "arguments.$SLURM_NODEID"
[[ $TRAINING == done ]] && exit 0
[[ $TRAINING == fails ]] && exit 3
echo "node $SLURM_NODEID has started"
mkfifo "nothing.$SLURM_NODEID"
read -r <>"nothing.$SLURM_NODEID"
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM would on two nodes, with stand-ins for its commands."""
    (tmp_path / 'log').touch()
    (tmp_path / 'recipes').symlink_to(ROOT / 'recipes')
    jobs: list[subprocess.Popen] = []

    def start(accelerate: str, *arguments: str, gpus: int = 8, **settings: str) -> subprocess.Popen:
        for name, text in {**SLURM, 'accelerate': accelerate}.items():
            path = tmp_path / 'bin' / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/bash{text}')
            path.chmod(0o755)
        settings |= dict(SLURM_JOB_ID='4711', SLURM_JOB_NODELIST='first,second', SLURM_JOB_NUM_NODES='2')
        settings |= dict(SLURM_GPUS_ON_NODE=str(gpus), SLURM_CPUS_PER_TASK='64')
        environment = {**os.environ, **settings, 'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}'}
        command = ['bash', str(SBATCH), *arguments]
        jobs.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True))
        return jobs[-1]

    yield start
    if any(process.poll() is None for process in jobs):  # a test failed
        for node in tmp_path.glob('node.*'):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(node.read_text()), signal.SIGKILL)


def wait_for_lines(job: subprocess.Popen, text: str, count: int = 1) -> None:
    """Until the job has printed so many lines that begin with `text`; it must not end before."""
    found = itertools.islice((line for line in job.stdout or () if line.startswith(text)), count)
    assert len(list(found)) == count, 'the job has ended'


needs_setsid = pytest.mark.skipif(not shutil.which('setsid'), reason='the stand-in of srun needs setsid')


@needs_setsid
def test_slurm_starts_accelerate_on_every_node(job, tmp_path):
    assert job(QUICK_ACCELERATE, '--config', 'a b.yaml', '--output', 'out', TRAINING='done').wait(20) == 0
    for node in (0, 1):
        assert (tmp_path / f'arguments.{node}').read_text().splitlines() == [
            *(
                'launch',
                '--config_file',
                'recipes/accelerate_configs/nodes_2.yaml',
                '--num_machines',
                '2',
                '--num_processes',
            ),
            *('16', '--main_process_ip', '127.0.0.1', '--main_process_port', '24711', '--machine_rank', str(node)),
            *('recipes/train.py', '--config', 'a b.yaml', '--output', 'out', '--resume', 'auto'),
        ]
    assert 'scontrol requeue' not in (tmp_path / 'log').read_text()


@needs_setsid
def test_slurm_stops_training_before_the_time_is_over_and_queues_the_job_again(job, tmp_path):
    process = job(QUICK_ACCELERATE, TRAINING='is long')
    wait_for_lines(process, 'node ', 2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 1
    lines = (tmp_path / 'log').read_text().splitlines()
    assert lines[2:] == ['scancel --signal=TERM 4711', 'saved', 'saved', 'scontrol requeue 4711']


@needs_setsid
def test_slurm_does_not_queue_again_what_failed_or_was_cancelled(job, tmp_path):
    assert job(QUICK_ACCELERATE, TRAINING='fails').wait(20) == 1
    process = job(QUICK_ACCELERATE, TRAINING='is long')
    wait_for_lines(process, 'node ', 2)
    process.terminate()  # scancel: to the script and to the steps
    subprocess.run([tmp_path / 'bin' / 'scancel'], cwd=tmp_path, check=True)
    assert process.wait(20) == -signal.SIGTERM
    assert 'scontrol requeue' not in (tmp_path / 'log').read_text()


def test_slurm_asks_for_the_nodes_and_gpus_of_the_yaml():
    asked = dict(re.findall(r'^#SBATCH --([\w-]+)=(\S+)', SBATCH.read_text(), re.MULTILINE))
    config = load_config_from_file(str(ROOT / 'recipes' / 'accelerate_configs' / 'nodes_2.yaml'))
    assert int(asked['nodes']) == config.num_machines
    assert int(asked['nodes']) * int(asked['gpus-per-node']) == config.num_processes
    assert asked['ntasks-per-node'] == '1'  # Accelerate's launcher


@pytest.mark.slow
@needs_setsid
def test_slurm_trains_on_two_nodes_stops_and_goes_on(job, tmp_path):
    """With Accelerate and train.py, on two CPU processes."""
    tiny = [*QUICK, '--epochs', '3', '--log-with', 'none', '--no-overwrite', '--output', 'out']
    run = dict(ACCELERATE_USE_CPU='True', PYTHONPATH=str(ROOT), PYTHONUNBUFFERED='1')
    process = job(ACCELERATE, *tiny, gpus=1, **run)
    wait_for_lines(process, 'epoch 1/3')
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 1
    assert 'scontrol requeue 4711' in (tmp_path / 'log').read_text()
    assert not (tmp_path / 'out' / 'model').exists()

    process = job(ACCELERATE, *tiny, gpus=1, **run)
    assert process.wait(300) == 0
    epochs = [row['epoch'] for row in csv.DictReader((tmp_path / 'out' / 'summary.csv').open())]
    assert epochs == ['0', '1', '2'] and (tmp_path / 'out' / 'model').exists()
    assert (tmp_path / 'log').read_text().count('requeue') == 1
