"""Model folders from strangers: config.json and weights that anyone may have written, through timm.create_model."""

import io
import json
import pickle
import shutil
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models import save_for_hf

import timm_snn
from tests.campaign.runner import check_message
from tests.data.test_fuzz import damaged
from tests.support.damage import NO_FILES

PACKAGE = Path(timm_snn.__file__).parent
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
NUMBERS = [-1, 0, 1, 3, 999, 1000, 10**5, 10**9, 2**63, 10**30, 0.5, 1e999, float('nan'), True]
STRANGE = [None, '', 'x', 'x' * 10**6, '\x1b[2J\x1b]0;title\x07', 'one\ntwo', '\ud800', '../..', {}, [], {'a': 1}]
TEXTS = [
    *(b'', b'null', b'[]', b'5', b'"x"', b'{', b'\xff\xfe{}', b'\xef\xbb\xbf{}', b'[' * 10**5, b'{"a":' * 10**5),
    *(b'{"architecture": ' + b'1' * 10**5 + b'}', b'{"architecture": "msvit_4_96"}', b'\0' * 1000),
]


@contextmanager
def trials(folder: Path) -> Iterator[Callable[[Random], str]]:
    whole, path = folder / 'whole', folder / 'model'
    save_for_hf(timm.create_model('msvit_4_96'), whole, safe_serialization=True)
    config, weights = (whole / CONFIG).read_text(), (whole / WEIGHTS).read_bytes()

    def trial(random: Random) -> str:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / CONFIG).write_text(config)
        (path / WEIGHTS).write_bytes(weights)
        if random.random() < 0.6:
            (path / CONFIG).write_bytes(_hostile_config(config, random))
        else:
            _spoil_weights(path / WEIGHTS, weights, random)
        return load(path)

    yield trial


def load(path: Path) -> str:
    """The model of this folder is loaded, or refused by errors that are meant for it."""
    try:
        model = timm.create_model(f'local-dir:{path}', pretrained=True)
    except Exception as error:
        return refused(error, (ValueError, RuntimeError, OSError))
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    assert not broken, f'it is loaded with NaN or infinity in {broken[:3]}'
    return 'loaded'


def refused(error: Exception, expected: tuple[type[Exception], ...]) -> str:
    """Raises it again if it is not an error that is meant for a user.

    timm reads config.json before it asks for our model, and stumbles over it in its own ways.
    """
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not any(file.is_relative_to(PACKAGE) for file in files):
        return 'refused by timm'
    if not isinstance(error, expected) or isinstance(error, RecursionError):
        raise error
    check_message(error)
    return 'refused'


def _hostile_config(text: str, random: Random) -> bytes:
    if random.random() < 0.2:
        return random.choice([*TEXTS, damaged(text.encode(), random)])
    config = json.loads(text)
    for _ in range(random.randint(1, 3)):
        part = random.choice([config['model_args'], config['pretrained_cfg'], config])
        names = [
            *part,
            'depths',
            'embed_dims',
            'num_heads',
            'num_steps',
            'attn',
            'drop_path_rate',
            'v_threshold',
            'new',
        ]
        part[random.choice([name for name in names if name != 'architecture'])] = _hostile_value(random)
        config = {'model_args': {}, 'pretrained_cfg': {}, **config}
        for name in ('model_args', 'pretrained_cfg'):
            if not isinstance(config[name], dict):
                return json.dumps(config).encode()
    return json.dumps(config).encode()


def _hostile_value(random: Random) -> Any:
    match random.choice(['number', 'strange', 'list', 'nested']):
        case 'number':
            return random.choice(NUMBERS)
        case 'strange':
            return random.choice(STRANGE)
        case 'list':
            return [random.choice([*NUMBERS, *STRANGE[:4]]) for _ in range(random.choice([0, 1, 3, 3, 3, 1000]))]
        case _:
            value: Any = 1
            for _ in range(random.choice([2, 50, 900])):
                value = [value]
            return value


def _spoil_weights(path: Path, whole: bytes, random: Random) -> None:
    match random.choice(['damage', 'header', 'header', 'size', 'not finite', 'pickle', 'place']):
        case 'damage':
            path.write_bytes(damaged(whole, random))
        case 'header':
            path.write_bytes(_with_another_header(whole, random))
        case 'size':
            size = random.choice([0, 1, 7, 100, 10**8 + 1, 2**31, 2**40, 2**63, 2**64 - 1])
            path.write_bytes(struct.pack('<Q', size) + whole[8:])
        case 'not finite':
            tensors = safetensors.torch.load(whole)
            tensor = random.choice([tensor for tensor in tensors.values() if tensor.is_floating_point()])
            tensor.view(-1)[random.randrange(tensor.numel())] = random.choice([float('nan'), float('inf')])
            safetensors.torch.save_file(tensors, path)
        case 'pickle':
            torch.save({'model': [1, 2]}, buffer := io.BytesIO())
            path.write_bytes(random.choice([buffer.getvalue(), pickle.dumps({'a': 1}), damaged(whole, random)]))
        case _:
            _put_something_else(path, random)


def _put_something_else(path: Path, random: Random) -> None:
    path = random.choice([path, path.with_name(CONFIG)])
    path.unlink()
    match random.choice(['nothing', *NO_FILES, 'loop']):
        case 'nothing':
            pass
        case 'loop':
            path.symlink_to(path.name)
        case kind:
            NO_FILES[kind](path)


def _with_another_header(data: bytes, random: Random) -> bytes:
    end = 8 + struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:end])
    name = random.choice(list(header))
    tensor = header[name] = dict(header[name])
    match random.choice(['dtype', 'shape', 'offsets', 'name', 'missing', 'metadata']):
        case 'dtype':
            tensor['dtype'] = random.choice(['F64', 'I8', 'BOOL', 'F8_E4M3', 'X', 5, None])
        case 'shape':
            tensor['shape'] = [random.choice(NUMBERS[:-4]) for _ in range(random.randint(0, 5))]
        case 'offsets':
            tensor['data_offsets'] = [random.choice(NUMBERS[:-4]), random.choice(NUMBERS[:-4])]
        case 'name':
            header[random.choice(STRANGE[1:8])] = header.pop(name)
        case 'missing':
            del header[name]
        case 'metadata':
            header['__metadata__'] = random.choice([{'format': 'x' * 10**5}, {'format': '\x1b[2J'}, {'a': 5}, 5])
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data[end:]
