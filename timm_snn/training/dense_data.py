"""Pictures whose masks or boxes are transformed together with them, read from tables and files."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from ..data.rows import import_datasets
from ..progress import track
from .columns import check_column_names
from .data import Samples, TrainingSamples, UnreadableSample, randomness_of
from .errors import UserError

__all__ = ['InMemory', 'JointSamples', 'JointTrainingSamples', 'PictureSource', 'open_table']

SMALL = 2**30  # bytes of decoded pictures that are kept in memory without being asked for


class PictureSource(Protocol):
    """A data set of pictures and what is to be found in them, decoded and not augmented."""

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, Any]: ...

    def name_of(self, index: int) -> str:
        """As messages name the sample: a file, or a row of a table."""
        ...

    def facts(self) -> dict[str, str]:
        """Hashes that tell these samples from others, see `fingerprint`."""
        ...


class JointSamples(Samples):
    """Samples whose transform takes the picture and its target together, as those of torchvision's v2 do."""

    def name(self, number: int) -> str:
        dataset, index = self.locate(number)
        return dataset.name_of(index)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, target = self._read_or_say(number)
        return self.transform(image, target) if self.transform else (image, target)


class JointTrainingSamples(TrainingSamples):
    """The same of samples to train on, whose random numbers are of the seed, the epoch and the sample alone."""

    name = JointSamples.name

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        image, target = self.read_or_next(number)
        with randomness_of(self.seed, self.epoch, int(self.indices[number])):
            return self.transform(image, target) if self.transform else (image, target)


class InMemory(Dataset):
    """Some samples of a source, decoded once; others are read as before.

    Args:
        wanted: True keeps all of them, None those of less than `SMALL` bytes.

    Raises: UserError for one that cannot be read.
    """

    def __init__(self, source: Any, indices: Sequence[int], wanted: bool | None) -> None:
        self.source, self.classes = source, source.classes
        self.name_of, self.facts = source.name_of, source.facts
        self.samples: dict[int, tuple[Any, Any]] = {}
        if wanted is False or not len(indices):
            return
        if wanted is None and _bytes_of(self._read(indices[0])) * len(indices) >= SMALL:
            return
        self.samples = {index: self._read(index) for index in track(indices, 'decode', unit='pictures')}

    def _read(self, index: int) -> tuple[Any, Any]:
        try:
            return self.source[index]
        except UnreadableSample as error:
            raise UserError(str(error)) from error
        except Exception as error:  # decoders stumble in their own ways over broken files
            raise UserError(
                f'sample {self.name_of(index)} is unreadable, {type(error).__name__}: {error}; --no-data-in-memory '
                'reads samples when they are needed, and takes the next one in training'
            ) from error

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.samples[index] if index in self.samples else self.source[index]


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_bytes_of, value)) if isinstance(value, (list, tuple)) else 0


def open_table(name: str, split: str, cache: str | None, image_key: str, *target_keys: str) -> Any:
    """A split of a data set of Hugging Face's library, whose pictures stay encoded: {'bytes', 'path'}.

    Raises: ValueError with the columns that there are, unless the keys are some of them.
    """
    check_column_names(name, split, cache, [image_key, *target_keys])
    datasets = import_datasets()
    table = datasets.load_dataset(name, split=split, cache_dir=cache)
    for key, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(key, datasets.Image(decode=False))
    if not isinstance(table.features[image_key], datasets.Image):
        raise ValueError(f'column {image_key!r} holds {table.features[image_key]}, no pictures: --input-key names them')
    return table


def file_of(picture: dict[str, Any]) -> Any:
    """What to open of a picture in a table."""
    if picture['bytes'] is None and picture['path'] is None:
        raise ValueError('it has no picture')
    return picture['path'] if picture['bytes'] is None else BytesIO(picture['bytes'])
