"""Models as the scripts open them: to train, and to run."""

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

import timm_snn
from timm_snn.layers.conv import MapConv
from timm_snn.ops import ATan, sparse_conv
from timm_snn.training.errors import UserError
from timm_snn.training.models import check_sparse_spikes, fused, is_trained, open_model, open_to_train
from timm_snn.training.options import trainable_options, training_options


def opened(model, *argv):
    """What a run of train.py with these options opens -> the memory format, and whether zeros are skipped."""
    args = training_options(['--model', model, *argv])
    model = open_to_train(model, **trainable_options(args))
    weight = next(m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)).weight
    contiguous = weight.is_contiguous() or weight.shape[1] == 1
    return not contiguous, any(isinstance(m, MapConv) and m.skips_zeros for m in model.modules())


@pytest.mark.parametrize(
    ('argv', 'expected'),
    [
        ([], (True, True)),
        (['--compile'], (True, False)),
        (['--compile', '--sparse-spikes'], (True, True)),
        (['--no-channels-last', '--no-sparse-spikes'], (False, False)),
        (['--channels-last', '--sparse-spikes'], (True, True)),
    ],
)
def test_models_of_ours_train_fast_by_default_and_a_named_choice_wins(argv, expected):
    assert opened('msvit_4_384', *argv) == expected


def test_convolutions_of_few_channels_skip_zeros_if_that_is_asked_for():
    assert opened('msvit_4_96', '--in-chans', '3') == (True, False)
    assert opened('msvit_4_96', '--in-chans', '3', '--sparse-spikes') == (True, True)


def test_models_of_others_are_left_as_they_are():
    assert opened('resnet10t') == (False, False)
    assert opened('resnet10t', '--channels-last') == (True, False)
    resnet = timm.create_model('resnet10t')
    assert fused(resnet, 'resnet10t') is resnet


@pytest.mark.parametrize('how', ['config', 'command line'])
def test_settings_of_neurons_come_from_configs_and_the_command_line(tmp_path, how):
    (tmp_path / 'config.yaml').write_text(
        'model_kwargs: {lif_layer: plif, lif_kwargs: {tau: 4.0, surrogate: "atan:3", v_reset: null}}\n'
    )
    command = ['--model-kwargs', 'lif_layer=plif', "lif_kwargs={'tau': 4.0, 'surrogate': 'atan:3', 'v_reset': None}"]
    options = training_options(['--config', str(tmp_path / 'config.yaml')] if how == 'config' else command)
    lif = open_to_train('msvit_4_96', model_kwargs=options.model_kwargs).stem.units[0].lif
    assert (type(lif), lif.tau, lif.surrogate, lif.v_reset) == (timm_snn.ParametricLIF, 4.0, ATan(3.0), None)


def test_an_old_config_says_the_same(tmp_path):
    (tmp_path / 'config.yaml').write_text('channels_last: false\n')
    assert opened('msvit_4_384', '--config', str(tmp_path / 'config.yaml')) == (False, True)


def test_what_cannot_be_fused_runs_as_it_is_with_one_line(small, caplog):
    assert fused(small, 'small') is not small and not caplog.messages
    prune.l1_unstructured(small.stages[0].blocks[0].mlp.fc1.conv, 'weight', 0.3)
    assert fused(small, 'small') is small
    (note,) = caplog.messages
    assert note.startswith('note: small runs as it is, not fused: fuse cannot fold stages.0.blocks.0.mlp.fc1.conv: ')


def test_sparse_spikes_that_are_asked_for_are_checked(monkeypatch):
    with pytest.raises(UserError, match=r'cannot skip zeros: .*on meta: leave it out there'):
        check_sparse_spikes(torch.device('meta'))
    timm_snn.set_backend('torch')
    with pytest.raises(UserError, match="the backend 'torch', asked for by set_backend, is plain torch: leave out one"):
        check_sparse_spikes(torch.device('cpu'))
    timm_snn.set_backend(None)
    monkeypatch.setattr(sparse_conv, 'why_not_built', lambda *_: 'no compiler')
    with pytest.raises(UserError, match='cannot skip zeros: sparse_spikes cannot run here: no compiler'):
        check_sparse_spikes(torch.device('cpu'))


def test_a_tag_has_its_weights_where_there_are_some_and_random_ones_are_said(caplog):
    trained = timm.create_model('msvit_4_96.digits', pretrained=True).state_dict()
    assert all(
        torch.equal(value, trained[name]) for name, value in open_model('msvit_4_96.digits').state_dict().items()
    )
    assert is_trained('msvit_4_96.digits', None, None) and not caplog.messages
    open_model('msvit_4_96.digits', pretrained=False)
    open_model('msvit_4_96')
    open_model('msvit_4_384.cifar10', device='meta')
    assert [message.partition(': its spikes')[0] for message in caplog.messages] == [
        f'note: {name} has random weights' for name in ('msvit_4_96.digits', 'msvit_4_96', 'msvit_4_384.cifar10')
    ]
