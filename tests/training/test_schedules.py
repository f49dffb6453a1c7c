"""Time steps and sizes of images by epoch: which hold when, what they cost, and what is refused."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from timm_snn.training.errors import UserError
from timm_snn.training.options import as_config, phase_options, training_options
from timm_snn.training.schedules import Phase, Phases

CPU = torch.device('cpu')


def phases(num_steps=None, heights=None, epochs=10, shape=(1, 32, 32), **kwargs):
    model = timm.create_model('msvit_4_96', **kwargs)
    return Phases(model, shape, CPU, epochs, num_steps or {}, heights or {})


def test_numbers_hold_from_their_epoch_on():
    found = phases({0: 1, 0.75: 2, 9: 4}, {2: 16, 0.5: 24}, shape=(1, 32, 40))
    steps, sizes = zip(*(found.of(epoch) for epoch in range(10)), strict=True)
    assert steps == (1,) * 8 + (2, 4)
    assert sizes == ((32, 40),) * 2 + ((16, 20),) * 3 + ((24, 30),) * 5
    assert found.full == Phase(4, (32, 40))
    assert str(found).startswith('trained from epoch 1 with T=1, 40 x 32 px, from epoch 3 with T=1, 20 x 16 px, from')
    assert str(found).endswith('epoch 10 with T=4, 30 x 24 px; validated and saved with T=4, 40 x 32 px')


def test_without_schedules_all_epochs_are_alike_and_nothing_is_said():
    found = phases()
    assert {found.of(epoch) for epoch in range(10)} == {found.full} and not str(found)


def test_the_cost_is_three_forward_passes_with_these_steps_and_this_size():
    model = timm.create_model('msvit_4_96', lif_layer=lambda **_: torch.nn.Identity()).eval()
    found = phases({0: 1, 5: 2}, {0: 16})
    for phase in (Phase(1, (16, 16)), Phase(2, (16, 16)), Phase(4, (32, 32))):
        model.num_steps = phase.num_steps
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(torch.zeros(1, 1, *phase.size))
        assert found.flop(phase) == pytest.approx(3 * counter.get_total_flops(), rel=0.05)


def test_the_model_stays_as_it_was():
    model = timm.create_model('msvit_4_96').train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Phases(model, (1, 32, 32), CPU, 2, {0: 1}, {0: 16})
    assert model.num_steps == 4 and model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_event_frames_have_their_steps():
    model = timm.create_model('msvit_4_96', in_chans=2, num_steps=3)
    found = Phases(model, (3, 2, 32, 32), CPU, 2, {}, {})
    assert found.full == Phase(3, (32, 32)) and found.flop(found.full) > 0


@pytest.mark.parametrize(
    ('num_steps', 'heights', 'kwargs', 'message'),
    [
        ({0: 8}, {}, {}, '--num-steps-schedule: 8 is more than T of the model, --model-kwargs num_steps=4: raise that'),
        ({0: 4}, {}, {'act': 'relu'}, 'num_steps=1: raise that, or pass --num-steps-schedule 0=1'),
        ({}, {0: 48}, {}, '--img-size-schedule: 48 is more than the size that is validated, --img-size 32: raise that'),
        ({0: 1}, {}, {'lif_layer': 'psn'}, r'cannot run the model with T=1, 32 x 32 px: .* cannot run 1'),
    ],
)
def test_what_the_model_cannot_run_is_refused_before_training(num_steps, heights, kwargs, message):
    with pytest.raises(UserError, match=message):
        phases(num_steps, heights, **kwargs)


def test_a_model_without_steps_has_no_schedule_of_them():
    model = timm.create_model('resnet10t', num_classes=10)
    with pytest.raises(UserError, match='the model has no time steps'):
        Phases(model, (3, 32, 32), CPU, 2, {0: 1}, {})
    assert Phases(model, (3, 32, 32), CPU, 2, {}, {0: 16}).of(0) == Phase(1, (16, 16))


def test_options_and_configs_say_the_same(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text('num_steps_schedule: {0: 1, 0.75: 4}\nimg_size_schedule: {0: 16, 3: 32}\nepochs: 8')
    args = training_options(['--config', str(path)])
    line = ['--num-steps-schedule', '0.75=4', '0=1', '--img-size-schedule', '0=16', '3.0=32', '--epochs', '8']
    assert phase_options(args) == phase_options(training_options(line))
    assert phase_options(args) == {'epochs': 8, 'num_steps': {0: 1, 0.75: 4}, 'heights': {0: 16, 3: 32}}
    assert as_config(args)['num_steps_schedule'] == {0: 1, 0.75: 4}


@pytest.mark.parametrize('text', ['4', '0=x', '1.5=4', '0=0', 'nan=1', 'inf=1', '0=1.5'])
def test_nonsense_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r'argument --num-steps-schedule: expected EPOCH=NUMBER \.\.\., with epochs'):
        training_options(['--num-steps-schedule', text])


def test_a_network_of_somebody_else_is_counted():
    assert (
        Phases(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), (1, 2, 2), CPU, 1, {}, {}).flop(
            Phase(1, (2, 2))
        )
        == 6 * 12
    )
