"""The campaign itself: one trial of each part, and a part whose trials fail in every way."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from random import Random

import pytest

from tests.campaign import __main__ as campaign
from tests.campaign.runner import try_part

ENDINGS = ('holds', 'raises', 'dies', 'hangs')


def ending(number: int) -> str:
    return Random(f'0 {__name__} {number}').choice(ENDINGS)


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    """A part, for the tests below."""

    def trial(random: Random) -> str:
        how = random.choice(ENDINGS)
        if how == 'raises':
            raise ValueError('one\ntwo')
        if how == 'dies':
            os.kill(os.getpid(), signal.SIGBUS)
        if how == 'hangs':
            signal.pause()
        return how

    yield trial


NUMBERS = {how: next(number for number in range(100) if ending(number) == how) for how in ENDINGS}


def test_failures_of_every_kind_are_counted_and_end_nothing():
    numbers = [NUMBERS[how] for how in ('dies', 'hangs', 'holds', 'raises', 'holds')]
    outcomes = try_part(__name__, 0, numbers, minutes=10, seconds=5)
    assert outcomes.held == {'holds': 2} and outcomes.tried == 5
    assert (
        f'its process ended with exit code -{signal.SIGBUS.value}' in outcomes.failed and 'it hangs' in outcomes.failed
    )
    (raised,) = [
        place for place in outcomes.failed if place.startswith('ValueError at tests/campaign/test_campaign.py')
    ]
    assert outcomes.failed[raised] == [NUMBERS['raises']] and outcomes.messages[raised] == 'one\\ntwo'


def test_a_failure_is_printed_with_a_command_that_repeats_it(monkeypatch, capsys):
    monkeypatch.setattr(campaign, 'PARTS', {'test_campaign': 'a part'})
    assert campaign.main(['--seed', '0', '--trial', str(NUMBERS['holds'])]) == 0
    assert campaign.main(['--seed', '0', '--trial', str(NUMBERS['raises'])]) == 1
    command = f'    python -m tests.campaign --seed 0 --only test_campaign --trial {NUMBERS["raises"]}\n'
    assert capsys.readouterr().out.endswith(command)


@pytest.mark.parametrize('part', ['kills', 'folders', 'hub', 'pictures'])
def test_a_trial_holds(part, tmp_path):
    with import_module(f'tests.campaign.{part}').trials(tmp_path) as trial:
        assert trial(Random(1))


def test_trials_in_processes_hold(capsys):
    """Of those parts that change their environment or fork."""
    assert campaign.main(['--seed', '0', '--trial', '1', '--only', 'recordings', 'library']) == 0, capsys.readouterr()
