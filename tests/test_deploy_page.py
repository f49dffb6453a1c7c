"""The lines of docs/deploy.md for a device: they classify as the model does, without torch, timm or this package."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

import timm_snn
from tests.conftest import lively

pytest.importorskip('onnx')
pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')

PAGE = Path(__file__).parents[1] / 'docs' / 'deploy.md'


def lines_for_the_device() -> str:
    (block,) = [block for block in re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.S) if 'onnxruntime' in block]
    return block


@pytest.mark.parametrize('in_chans', [1, 3])
def test_the_lines_for_the_device_answer_as_the_model(in_chans, tmp_path):
    sizes = dict(embed_dims=(8, 8, 16), depths=(0, 0, 1), num_heads=2, act='relu')  # continuous in the image
    model = lively(timm.create_model('msvit_4_96', num_classes=3, in_chans=in_chans, **sizes).eval())
    size = (in_chans, 24, 24)
    model.pretrained_cfg.update(
        input_size=size, mean=(0.3,) * in_chans, std=(0.4,) * in_chans, label_names=['left', 'right', 'ahead']
    )
    transform = create_transform(**resolve_data_config(model=model))
    random = np.random.default_rng(0)
    files, answers = [], []
    for i in range(4):
        pixels = random.integers(0, 32 << i, (9, 9, 3), np.uint8)
        image = Image.fromarray(pixels).convert('L' if in_chans == 1 else 'RGB')
        image.save(tmp_path / f'{i}.png')
        files.append(str(tmp_path / f'{i}.png'))
        with torch.no_grad():
            probabilities = model(transform(image)[None]).softmax(1)[0]
        answers.append((model.pretrained_cfg['label_names'][int(probabilities.argmax())], float(probabilities.max())))
    timm_snn.export(model, tmp_path / 'model.onnx')

    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'timm_snn']))\n"
    program = tmp_path / 'classify.py'
    program.write_text(blocked + lines_for_the_device())
    command = [sys.executable, str(program), str(tmp_path / 'model.onnx'), *files]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = [line.rsplit(' ', 2)[1:] for line in run.stdout.splitlines()]
    assert len({share for _, share in printed}) == len(files)  # or what is made of the images would not matter
    assert [label for label, _ in printed] == [label for label, _ in answers]
    for (_, share), (_, probability) in zip(printed, answers, strict=True):
        assert float(share.rstrip('%')) == pytest.approx(100 * probability, abs=0.06)


def test_the_lines_for_the_device_are_few():
    lines = [line for line in lines_for_the_device().splitlines() if line.strip()]
    assert len(lines) <= 20
    assert not re.search(r'import (torch|timm)', lines_for_the_device())
