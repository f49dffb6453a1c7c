"""The promises of every family, on its smallest member, two blocks a stage; `-m slow` has all members.

A family's file is enough to be tested here: nothing below names one.
"""

import pytest
import timm
import torch
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_snn
from tests.support.families import MEMBERS, SMALLEST, shallow
from timm_snn import testing
from timm_snn.models import SpikingTransformer
from timm_snn.models.pretrained import module_of
from timm_snn.testing import images, lively

# torch.compile takes some seconds for each, so that every third of ours is traced, and `-m slow` traces the others.
TRACED = [
    pytest.param(name, marks=[pytest.mark.slow] if i % 3 != 2 and module_of(name).startswith('timm_snn.') else [])
    for i, name in enumerate(SMALLEST)
]


@pytest.fixture(scope='module', params=MEMBERS)
def model(request) -> SpikingTransformer:
    """At two steps, to save time; in float64, where spikes do not depend on threads."""
    torch.manual_seed(0)
    return lively(shallow(timm.create_model(request.param, num_steps=2)).double().eval())


@pytest.fixture(scope='module', params=SMALLEST)
def tiny(request) -> SpikingTransformer:
    torch.manual_seed(0)
    return lively(shallow(timm.create_model(request.param, num_steps=2, num_classes=10)).double().eval())


def parts_of(model: SpikingTransformer) -> list[nn.Module]:
    """Those with parameters; a stage may have none."""
    return [part for part in (model.stem, *model.stages, model.head) if list(part.parameters())]


class TestEveryModel:
    """State that leaks between images, steps and calls, which much research code has."""

    def test_logits_do_not_depend_on_order_or_company(self, model):
        testing.check_neighbours(model)

    def test_calls_do_not_depend_on_earlier_calls(self, model):
        testing.check_memory(model)

    def test_frames_that_repeat_an_image_equal_the_image(self, model):
        testing.check_frames(model)

    def test_a_step_does_not_see_the_future(self, model):
        testing.check_causality(model)

    def test_feature_levels_have_the_sizes_they_announce(self, model):
        testing.check_features(model)


class TestTime:
    def test_one_step(self, tiny, monkeypatch):
        with torch.no_grad():
            monkeypatch.setattr(tiny, 'num_steps', 1)
            x = images(tiny)
            torch.testing.assert_close(tiny(x.unsqueeze(1)), tiny(x), rtol=0, atol=1e-9)

    def test_the_first_steps_answer_as_a_model_of_fewer_steps(self, tiny):
        testing.check_steps(tiny)

    def test_a_stream_answers_as_all_frames_at_once(self, tiny):
        testing.check_streaming(tiny)

    def test_frames_of_another_number_are_refused(self, tiny):
        with pytest.raises(ValueError, match=r'expected 2 frames .* assign model.num_steps = 3'):
            tiny(images(tiny).unsqueeze(1).repeat(1, 3, 1, 1, 1))


class TestTraining:
    def test_every_part_learns(self, tiny):
        testing.check_learning(tiny)

    @pytest.mark.parametrize('name', SMALLEST)
    def test_every_parameter_of_a_feature_extractor_learns(self, name):
        """DistributedDataParallel waits for the gradients of all."""
        net = timm.create_model(name, num_steps=2, lif_layer='plif', features_only=True)
        shallow(net.model)
        sum(tap.square().sum() for tap in net(images(net.model).float())).backward()
        assert not [key for key, parameter in net.named_parameters() if parameter.grad is None]

    def test_checkpointing_changes_neither_logits_nor_gradients(self, tiny):
        testing.check_checkpointing(tiny)

    def test_earlier_stages_learn_more_slowly_with_layer_decay(self, tiny):
        optimizer = create_optimizer_v2(tiny, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.8)
        groups = {id(p): g for g in optimizer.param_groups for p in g['params']}
        scales = [groups[id(list(part.parameters())[-1])]['lr_scale'] for part in parts_of(tiny)]
        assert scales == sorted(set(scales)) and scales[-1] == 1
        for name, parameter in tiny.named_parameters():
            assert (groups[id(parameter)]['weight_decay'] == 0) == (parameter.ndim < 2), name


class TestTools:
    @pytest.mark.parametrize('tiny', TRACED, indirect=True)
    def test_compiles_without_graph_breaks(self, tiny):
        """At one step: the loop over steps is covered by `TestTimmContract`."""
        testing.check_compiling(tiny)

    def test_the_profiler_sees_every_layer_with_weights(self, tiny):
        macs = 0

        def count(layer, args, output):
            nonlocal macs
            macs += output[0].numel() * layer.weight[0].numel()  # of one step of one sample

        layers = [m for m in tiny.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
        hooks = [layer.register_forward_hook(count) for layer in layers]
        x = images(tiny)
        with torch.no_grad():
            tiny(x)
        for hook in hooks:
            hook.remove()
        report = timm_snn.profile(tiny, x)
        weighted = [layer for layer in report.layers if layer.kind in ('conv', 'linear')]
        assert sum(layer.dense_macs_per_step for layer in weighted) == macs
        assert sum(layer.parameters for layer in report.layers) == sum(p.numel() for p in tiny.parameters())

    def test_the_profiler_counts_what_torch_does(self, tiny):
        frames = images(tiny, batch=2).unsqueeze(0)  # of which every layer sees every step
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tiny(frames)
        assert 2 * timm_snn.profile(tiny, frames).total.dense_macs == counter.get_total_flops()

    @pytest.mark.parametrize('name', SMALLEST)
    def test_saved_models_load(self, name, tmp_path):
        model = timm.create_model(name, num_classes=7, num_steps=3, backend='torch').eval()
        save_for_hf(model, tmp_path, safe_serialization=True)
        assert 'backend' not in (tmp_path / 'config.json').read_text()
        loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
        x = images(model, batch=1).float()
        assert loaded.num_steps == 3 and torch.equal(loaded(x), model(x))

    @pytest.mark.parametrize('name', SMALLEST)
    def test_reduced_precision_and_the_meta_device(self, name):
        model = timm.create_model(name, num_steps=2, lif_layer='plif', dtype=torch.bfloat16).eval()
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model(images(model, batch=1).bfloat16()).dtype == torch.bfloat16
        model = timm.create_model(name, num_steps=2, lif_layer='plif', device='meta')
        assert all(t.is_meta for t in (*model.parameters(), *model.buffers()))
        assert model(images(model).float().to('meta')).is_meta
