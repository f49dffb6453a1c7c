"""The story of docs/hub.md from end to end, on real digits against the loopback Hub."""

import datasets
import timm
import torch
from sklearn.datasets import load_digits

from tests.support.scripts import ROOT
from tests.support.training import weights

CONFIG = ROOT / 'recipes' / 'configs' / 'msvit' / 'finetune.yaml'


def test_a_model_of_the_hub_is_fine_tuned_pushed_and_loaded_again(train, finished, hub, tmp_path):
    """A model of all digits, from now on for the first three, given as rows of a Hugging Face data set."""
    hub.add('lab/digits.v1', finished / 'model')
    images, labels = load_digits(n_class=3, return_X_y=True)
    features = datasets.Features(
        {'image': datasets.Image(), 'label': datasets.ClassLabel(names=['zero', 'one', 'two'])}
    )
    pictures = (16 * images.reshape(-1, 8, 8)).clip(max=255).astype('uint8')
    for split, rows in (('train', slice(0, 256)), ('test', slice(256, 356))):
        data = datasets.Dataset.from_dict({'image': list(pictures[rows]), 'label': labels[rows]}, features=features)
        data.to_parquet(str(tmp_path / 'data' / f'{split}-00000-of-00001.parquet'))

    data_set = ['--dataset', f'hfds/{tmp_path / "data"}', '--data-dir', tmp_path / 'cache', '--input-key', 'image']
    model = ['--model', 'hf-hub:lab/digits.v1', '--num-classes', '3', '--img-size', '16']
    short = ['--epochs', '1', '--warmup-epochs', '0', '--workers', '0', '--num-threads', '1', '--log-with', 'none']
    printed = train(
        '--config', CONFIG, *model, *data_set, *short, '--push-to-hub', 'lab/first_three', '--output', tmp_path / 'out'
    )  # fmt: skip
    assert 'uploaded: http' in printed and '256 training and 100 validation samples' in printed

    tuned = timm.create_model('hf-hub:lab/first_three', pretrained=True).eval()
    assert tuned.pretrained_cfg['label_names'] == ['zero', 'one', 'two'] and tuned.num_classes == 3
    assert not tuned.pretrained_cfg.get('tag')  # which is not what follows a dot in the name of a repository
    saved, before = weights(tmp_path / 'out'), weights(finished)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, saved[name])
        if name.startswith('stem.'):  # frozen by the config
            assert torch.equal(tensor, before[name])
    key = 'stages.2.blocks.1.mlp.fc2.conv.weight'
    assert not torch.equal(saved[key], before[key])
