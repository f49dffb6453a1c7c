"""Scripts of recipes/ and hub/ in this process, which saves the seconds that imports take."""

import importlib
import signal
import sys
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


def run(script: str, *arguments: object) -> None:
    """Run it; threads, handlers of signals and Accelerate are afterwards as they were."""
    threads, on_sigterm = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        load(script).main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        signal.signal(signal.SIGTERM, on_sigterm)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
