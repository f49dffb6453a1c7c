"""Scripts of recipes/ and hub/ in this process, which saves the seconds that imports take."""

import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from accelerate.state import AcceleratorState, GradientState

ROOT = Path(__file__).parents[2]


def load(script: str) -> ModuleType:
    """A script by its path, such as 'hub/push.py', with its folder on Python's path as when it is run."""
    path = ROOT / script
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))


@contextmanager
def accelerator_of_its_own() -> Iterator[None]:
    """Threads and Accelerate, which has one state in a process, are afterwards as they were."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def run(script: str, *arguments: object) -> None:
    """Run it; threads, handlers of signals and Accelerate are afterwards as they were."""
    on_sigterm, deterministic = signal.getsignal(signal.SIGTERM), torch.are_deterministic_algorithms_enabled()
    try:
        with accelerator_of_its_own():
            load(script).main([str(argument) for argument in arguments])
    finally:
        torch.use_deterministic_algorithms(deterministic)
        signal.signal(signal.SIGTERM, on_sigterm)
