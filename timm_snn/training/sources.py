"""The data that a model was trained on, by its tag."""

from dataclasses import replace
from pathlib import Path

from ..models.pretrained import recipe_of
from .data import DataSource
from .errors import UserError
from .options import data_source, training_options

__all__ = ['source_of']


def source_of(model: str, dataset: str | None = None, data_dir: Path | None = None) -> DataSource:
    """The data that the config of NAME.TAG trains on, or `dataset`; frames are made as the model says.

    Raises: UserError for a model without such a config, if there is no `dataset`.
    """
    recipe = recipe_of(model)
    if not (recipe or dataset):
        raise UserError(f'{model} has no tag that names a config: pass --dataset, and --data-dir where it needs one')
    given = ['--config', recipe] if recipe and not dataset else []
    given += [f'--dataset={dataset}'] if dataset else []
    given += [f'--data-dir={data_dir}'] if data_dir else []
    return replace(data_source(training_options(given)), split_by=None, bin_us=None, events_per_bin=None)
