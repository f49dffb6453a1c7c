"""The data that a model was trained on, by its tag."""

from dataclasses import replace

from ..models.pretrained import recipe_of
from .data import DataSource
from .errors import UserError
from .options import Namespace, data_source, training_options

__all__ = ['source_of']


def source_of(model: str, args: Namespace) -> tuple[DataSource, str]:
    """The data and the split that the config of NAME.TAG validates on, as far as `args` name no others.

    They have what `options.add_source_options` adds. The columns and the split of a config hold for another --dataset
    where both are of Hugging Face's library, such as a copy on this disk. Frames are made as the model says.

    Raises: UserError for a model without such a config, if there is no --dataset.
    """
    recipe = recipe_of(model)
    if not (recipe or args.dataset):
        raise UserError(f'{model} has no tag that names a config: pass --dataset, and --data-dir where it needs one')
    given = ['--config', recipe] if recipe and _fits(recipe, args.dataset) else []
    for name in ('dataset', 'data_dir', 'input_key', 'target_key'):
        value = getattr(args, name)
        given += [f'--{name.replace("_", "-")}={value}'] if value else []
    options = training_options(given)
    data = replace(data_source(options), split_by=None, bin_us=None, events_per_bin=None)
    return data, args.split or options.val_split


def _fits(recipe: str, dataset: str | None) -> bool:
    """Whether what a config says about its data is true of `dataset`, too."""
    names = [dataset, training_options(['--config', recipe]).dataset] if dataset else []
    return all(name.startswith('hfds/') for name in names)
