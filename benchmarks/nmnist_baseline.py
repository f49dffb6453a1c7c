"""Logistic regression on event counts: what a spiking model has to beat on N-MNIST-small.

    python benchmarks/nmnist_baseline.py N-MNIST                  folder with Train/<label>/*.bin and Test/<label>/*.bin
    python benchmarks/nmnist_baseline.py N-MNIST --split-by number -C 1

Accuracy by cross-validation over all recordings of the folder, those of Train before those of Test, both sorted by
path; the folds are those of StratifiedKFold(5, shuffle=True, random_state=0). On the first 1,000 + 100 recordings of
N-MNIST it is 93.00 % (91.36, 90.91, 94.55, 93.64, 94.55); with -C 1, scikit-learn's default, 92.45 %.

Needs the extra train.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from timm_snn.data import read_events, to_frames


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    files = [*sorted(args.root.glob('Train/*/*.bin')), *sorted(args.root.glob('Test/*/*.bin'))]
    if not files:
        raise SystemExit(f'error: there are no Train/<label>/*.bin and Test/<label>/*.bin in {args.root}')
    labels = np.array([int(file.parent.name) for file in files])
    if np.bincount(labels).max() < args.folds:
        raise SystemExit(f'error: no digit has a recording for each of {args.folds} folds in {args.root}')
    counts = np.stack([features(file, args.num_steps, args.split_by) for file in files])
    folds = StratifiedKFold(args.folds, shuffle=True, random_state=0).split(counts, labels)
    scores = []
    for fold, (train, test) in enumerate(folds):
        model = LogisticRegression(C=args.C, max_iter=1000).fit(counts[train], labels[train])
        scores.append(100 * model.score(counts[test], labels[test]))
        print(f'fold {fold}: {scores[-1]:.2f} % of {len(test)} after training on {len(train)}', flush=True)
    print(f'mean: {np.mean(scores):.2f} % over {len(files):,} recordings, {args.num_steps} bins by {args.split_by}')


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', type=Path, help='N-MNIST in its official layout, or a part of it')
    parser.add_argument('--num-steps', type=int, default=5, help='bins, each of two polarities')
    parser.add_argument('--split-by', choices=('number', 'time'), default='time')
    parser.add_argument('-C', type=float, default=0.01, help='inverse strength of the regularisation')
    parser.add_argument('--folds', type=int, default=5)
    return parser.parse_args(argv)


def features(file: Path, num_steps: int, split_by: str) -> np.ndarray:
    return to_frames(read_events(file), num_steps, sensor_size=(34, 34), split_by=split_by).ravel()


if __name__ == '__main__':
    main()
