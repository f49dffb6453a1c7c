"""How the tests of the recipes run them."""

from pathlib import Path

import safetensors.torch
import torch

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / 'recipes' / 'train.py'
DIGITS = ROOT / 'recipes' / 'configs' / 'msvit' / 'digits.yaml'
QUICK = ['--config', str(DIGITS), '--img-size', '16', '--batch-size', '64', '--epochs', '2', '--num-threads', '1']


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of the model that a run saved."""
    return safetensors.torch.load_file(output / 'model' / 'model.safetensors')
