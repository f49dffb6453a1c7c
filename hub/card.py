"""The model card of a training run, a checkpoint, a model folder, or a registered model: README.md of its repository.

    python hub/card.py output/digits --repo USER/NAME
    python hub/card.py output/fashion_mnist --energy output/energy/report.json --output README.md
    python hub/card.py msvit_4_96.fashion_mnist

Accuracies are those that the run itself measured, in its summary.csv, and those of the same recipe in hub/results.csv;
firing rates and energies are those of a report of recipes/energy.py. What nobody measured is called not evaluated.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_folder import LOCAL, ROOT, open_source, read_report

from timm_snn.files import write_whole_text
from timm_snn.hub.card import Source, render_card
from timm_snn.profiling import Report
from timm_snn.training.console import give
from timm_snn.training.data import EVENT_DATASETS
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.options import ArgumentParser, as_config, training_options
from timm_snn.training.results import dataset_name, describe_split
from timm_snn.training.tables import read_csv

__all__ = ['find_results', 'give_card', 'make_card']

# Options that do not tell one recipe from another, besides those of the machine.
REPEATS = ('seed', 'fold')


def find_results(source: Source) -> tuple[dict[str, str] | None, list[dict[str, str]]]:
    """The result of these weights, if it was measured, and all rows of hub/results.csv about the same recipe.

    Both have the columns of that file. Of a registered model without weights, the rows with its name and tag.
    """
    rows = read_csv(ROOT / 'hub' / 'results.csv')
    if not source.has_weights:
        return None, [row for row in rows if row['model'] == source.name and '.' in source.name]
    if not source.run:
        return None, []
    with one_line_errors('read the results of the run'):
        own = own_result(source)
    same = []
    for row in rows:
        options = options_of(row['command'])
        if is_same(options, source.run, REPEATS):
            same.append(row)
            if own and is_same(options, source.run, ()) and all(row[key] == own[key] for key in ('top1', 'epochs')):
                own = row
    return own, same


def options_of(command: str) -> dict[str, Any]:
    """The options that a command of hub/results.csv trains with."""
    return as_config(training_options(shlex.split(command.partition('recipes/train.py')[2]), folder=ROOT))


def is_same(options: dict[str, Any], run: dict[str, Any], but: tuple[str, ...]) -> bool:
    """True if both train alike, wherever they run."""
    return all(options[key] == run.get(key) for key in options if key not in (*LOCAL, *but))


def own_result(source: Source) -> dict[str, str] | None:
    """The result of these weights on the validation split of their run, as a row of hub/results.csv."""
    run, history, tested = source.run, source.history, source.tested
    if run.get('val_fraction') is not None:  # the history measures held-out training samples
        history = history[: tested['epoch']] if tested else []
    if not history:
        return None
    top1 = tested['top1'] if tested else history[-1].get('ema_top1') or history[-1]['eval_top1']
    return {
        'model': source.name,
        'dataset': dataset_name(run),
        'split': describe_split(run, bool(tested)),
        'top1': f'{float(top1):.2f}',
        'seed': str(run['seed']),
        'epochs': str(len(history)),
        'command': 'accelerate launch recipes/train.py --config training.yaml',
    }


def make_card(source: Source, repo: str | None, report: Report | None, dtype: str = 'float32') -> str:
    """README.md. `repo`, USER/NAME, is where the weights will be."""
    own, rows = find_results(source)
    result = own or next(iter(rows), None)
    trained_on = '' if not source.run else result['dataset'] if result else dataset_name(source.run)
    # of an earlier version, which did not say how its frames were made
    data = {source.model.pretrained_cfg.get('tag'), source.run.get('dataset')}
    takes_events = not data.isdisjoint(EVENT_DATASETS)
    with one_line_errors('write the card'):
        return render_card(
            source, repo, report, dtype, own=own, rows=rows, trained_on=trained_on, takes_events=takes_events
        )


def give_card(card: str, output: Path | None) -> None:
    """Write the card to a file, or print it."""
    if output is None:
        give({'card': card}, card.rstrip('\n'))
        return
    with one_line_errors(f'write {output}'):
        write_whole_text(output, card)
    give({'output': output})


@script
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/card.py', __doc__)
    parser.add_argument('source', help='OUTPUT of recipes/train.py, a checkpoint in it, a model folder, or a name')
    parser.add_argument('--repo', metavar='USER/NAME', help='where the weights are; default: in a folder')
    parser.add_argument('--energy', type=Path, help='report.json of recipes/energy.py on these weights')
    parser.add_argument('--output', type=Path, help='default: print it')
    args = parser.parse_args(argv)
    source = open_source(args.source)
    report = args.energy
    if report is None and not source.has_weights:
        measured = ROOT / 'hub' / 'energy' / f'{source.name}.json'
        report = measured if measured.is_file() else None
    card = make_card(source, args.repo, read_report(report, source.model))
    give_card(card, args.output)


if __name__ == '__main__':
    main()
