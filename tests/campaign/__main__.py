"""The command line: which parts, for how long, from which seed."""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Sequence
from random import SystemRandom

from tests.campaign.runner import try_part

PARTS = {
    'kills': 'trainings killed at changes of their folder and by the clock, and resumed',
    'recordings': 'damaged recordings, labels, rows and cached frames',
    'folders': 'model folders from strangers',
    'hub': 'answers of a Hub that is broken or hostile',
    'library': 'torn, planted and killed libraries of C++',
    'pictures': 'folders of pictures with junk, through training',
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.campaign', description=__doc__)
    parser.add_argument('--minutes', type=float, default=6, help='of all parts together (default: %(default)s)')
    parser.add_argument('--seed', type=int, help='of what is tried (default: another one each time)')
    parser.add_argument('--only', choices=PARTS, nargs='+', default=list(PARTS), metavar='PART', help=', '.join(PARTS))
    parser.add_argument('--trial', type=int, help='make the one trial with this number')
    args = parser.parse_args(argv)
    seed = SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f'seed {seed}', flush=True)
    has_failed = False
    for part in args.only:
        start = time.monotonic()
        numbers = itertools.count() if args.trial is None else [args.trial]
        outcomes = try_part(f'tests.campaign.{part}', seed, numbers, args.minutes / len(args.only))
        held = ', '.join(f'{count:,} {word}' for word, count in sorted(outcomes.held.items()))
        print(
            f'{part} ({PARTS[part]}): {outcomes.tried:,} tried, {outcomes.held.total():,} held'
            f'{held and f" ({held})"}, {time.monotonic() - start:.0f} s',
            flush=True,
        )
        for place, trials in outcomes.failed.items():
            print(
                f'  FAILED {len(trials):,} times: {place}: {outcomes.messages[place]}\n'
                f'    python -m tests.campaign --seed {seed} --only {part} --trial {trials[0]}',
                flush=True,
            )
        has_failed |= bool(outcomes.failed)
    return int(has_failed)


if __name__ == '__main__':
    os.environ['OMP_NUM_THREADS'] = '1'  # weights are compared bit for bit
    sys.exit(main())
