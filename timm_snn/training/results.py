"""The result of a run as a row of hub/results.csv, to be pasted there."""

import math
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch

from ..profiling import Report

__all__ = ['COLUMNS', 'commit_of', 'dataset_name', 'describe_split', 'results_row']

COLUMNS = (
    *('model', 'dataset', 'data_kind', 'split', 'split_kind', 'top1', 'mean_iou', 'map50', 'gmacs', 'mj'),
    *('seed', 'epochs', 'minutes', 'flop', 'hardware', 'versions', 'date', 'commit', 'weights', 'command'),
)
OF_THE_MACHINE = ('--output', '--resume', '--data-dir')  # with their values no part of the recipe


def results_row(
    run: Mapping[str, Any],
    argv: Sequence[str],
    *,
    score: float,
    summary: Mapping[str, Any],
    processes: int,
    device: torch.device,
    precision: str,
    clone: Path,
    is_tested: bool,
    metric: str = 'top1',
    script: str = 'recipes/train.py',
    report: Report | None = None,
) -> dict[str, str]:
    """What a run knows of its row. Left empty are data_kind, the split_kind of all but folds, and weights.

    Args:
        run: Its options.
        argv: Its command line, without what `accelerate launch` was told.
        score: In percent, of the column `metric`.
        summary: The row in summary.csv of the epoch that is reported.
        precision: Accelerate's mixed precision, 'no' for none.
        clone: The folder that may be a clone of the repository.
        is_tested: Whether held-out training samples picked the epoch.
        report: Of the model: multiply-accumulates in all steps and energy by convention C go into the row.
    """
    cores = torch.get_num_threads() * processes
    on_gpu = device.type == 'cuda'
    hardware = f'{processes} {torch.cuda.get_device_name(device)}' if on_gpu else f'{cores} CPU core{"s" * (cores > 1)}'
    words = list(argv)
    for option in OF_THE_MACHINE:
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    row = {
        'model': run['model'],
        'dataset': dataset_name(run),
        'split': describe_split(run, is_tested),
        'split_kind': 'folds' if run.get('fold') else '',
        metric: f'{score:.2f}',
        'seed': str(run['seed']),
        'epochs': str(summary['epoch'] + 1),
        'minutes': _known(summary['train_seconds'] / 60, '.1f'),
        'flop': _known(summary['train_flop'], '.2e'),
        'hardware': hardware if precision == 'no' else f'{hardware}, {precision}',
        'versions': f'torch {torch.__version__.partition("+")[0]} timm {timm.__version__}',
        'date': date.today().isoformat(),
        'commit': commit_of(clone),
        'command': f'accelerate launch {script} {shlex.join(words)}',
    }
    if report:
        row['gmacs'] = f'{report.total.dense_macs / 1e9:.3g}'
        row['mj'] = f'{report.energy["C"].mj:.3g}'
    return {column: row.get(column, '') for column in COLUMNS}


def _known(number: float, how: str) -> str:
    return '' if math.isnan(number) else format(number, how)


def commit_of(clone: Path) -> str:
    """The commit that a clone is at, with '-dirty' where files differ from it; '' if there is no clone or no git."""
    if not (clone / '.git').exists():
        return ''
    command = ['git', '-C', str(clone), 'describe', '--always', '--dirty', '--exclude=*', '--abbrev=7']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ''


def dataset_name(run: Mapping[str, Any]) -> str:
    """The name of the data in the options of a run, without the folders above it."""
    name = run['dataset'].removeprefix('torch/').replace('event_folder', '')
    table = name.removeprefix('hfds/')
    if name != table and (Path(table).is_absolute() or table.startswith(('~', '.'))):
        table = Path(table).name
    return table or Path(run.get('data_dir') or 'a folder').name


def describe_split(run: Mapping[str, Any], is_tested: bool) -> str:
    """The samples that a run was validated on, in words; `is_tested` where others picked the epoch."""
    split = run['val_split']
    if run.get('fold'):
        split = f'fold {run["fold"]} of all samples'
    if run.get('max_val_samples'):
        split += f', at most {run["max_val_samples"]:,} samples of it'
    if run.get('max_train_samples'):
        split += f'; trained on at most {run["max_train_samples"]:,} samples'
    return split + ('; the epoch was picked by held-out training samples' if is_tested else '')
