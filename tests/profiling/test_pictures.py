"""Pictures show what the model computed, from outside."""

import copy
from itertools import pairwise

import pytest
import timm
import torch

import timm_snn
from tests.conftest import lively
from tests.support.profiling import Net
from timm_snn.layers import ConvBn

pytest.importorskip('matplotlib')
from matplotlib.backends.backend_agg import FigureCanvasAgg

from timm_snn.profiling import pictures

IMAGE = torch.rand(1, 20, 28, generator=torch.Generator().manual_seed(0)).double()


def test_the_raster_has_a_panel_per_layer_and_a_mark_per_spike(small):
    report = timm_snn.profile(small, IMAGE.unsqueeze(0), progress=False)
    firing = [layer for layer in report.layers if layer.firing_rate is not None]
    names = [layer.name for layer in firing]
    panels = [axes for axes in pictures.spike_raster(small, IMAGE, names, num_neurons=10**6).axes if axes.get_visible()]
    for axes, layer in zip(panels, firing, strict=True):
        assert len(axes.collections[0].get_offsets()) == round(layer.firing_rate * layer.neuron_updates)
    assert sum(axes.get_visible() for axes in pictures.spike_raster(small, IMAGE).axes) == len(firing)
    few = pictures.spike_raster(small, IMAGE, ['stem.units.0'], num_neurons=5)
    assert len(few.axes) == 1 and len(few.axes[0].collections[0].get_offsets()) <= 5 * 4
    with pytest.raises(ValueError, match="no neurons called 'stem'; there are stem"):
        pictures.spike_raster(small, IMAGE, ['stem'])
    with pytest.raises(ValueError, match='no layer is named'):
        pictures.spike_raster(small, IMAGE, [])
    with pytest.raises(ValueError, match='no neurons ran'):
        pictures.spike_raster(torch.nn.Conv2d(1, 1, 1), IMAGE)


def test_attention_maps_are_the_means_of_q_p_and_a(small):
    found = {}
    attn = small.stages[0].blocks[0].attn
    for name in ('q.0', 'q.1', 'attn_lif'):
        attn.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: found.update({name: out}))
    small(IMAGE.unsqueeze(0))
    found = {name: out.detach() for name, out in found.items()}
    figure = pictures.attention_maps(small, IMAGE)
    maps = [axes.get_images()[-1].get_array() for axes in figure.axes[:4]]
    for shown, name in zip(maps[1:], ('q.0', 'q.1', 'attn_lif'), strict=True):
        expected = found[name].flatten(2, -2).mean((0, 1, 2)).reshape(5, 7)  # N = H * W, not square
        torch.testing.assert_close(torch.tensor(shown.tolist()), expected.float(), check_dtype=False)
    twice = lively(timm.create_model('msvit_4_96', query_kernels=((3, 3), (1,), None)))
    assert len(pictures.attention_maps(twice, IMAGE).axes) == 8 + 5  # with color bars
    ssa = lively(timm.create_model('msvit_4_96', attn='ssa'))
    with pytest.raises(ValueError, match='no multi-scale spiking attention'):
        pictures.attention_maps(ssa, IMAGE)


def test_traces_mark_the_spikes_of_the_layer(small):
    small.num_steps = 9
    figure = pictures.membrane_traces(small, IMAGE, 'stem.units.0', num_neurons=3)
    assert len(figure.axes) == 3
    threshold, potential, fired = figure.axes[0].lines
    assert len(potential.get_ydata()) == 9 and len(fired.get_ydata()) > 0
    assert min(fired.get_ydata()) >= threshold.get_ydata()[0]
    with pytest.raises(ValueError, match="no LIF neurons called 'head'"):
        pictures.membrane_traces(small, IMAGE, 'head')
    no_neuron = Net(ConvBn(2, 3)).double()  # but in its stem
    with pytest.raises(ValueError, match=r"called 'units\.0'; there are stem\.units\.0\.lif$"):
        pictures.membrane_traces(no_neuron, IMAGE, 'units.0')


def test_the_model_stays_as_it_was(small):
    small.train()
    frozen = small.stages[0].embed.units[0].bn.eval()
    before = copy.deepcopy(small.state_dict())
    for make in (pictures.spike_raster, pictures.attention_maps):
        make(small, IMAGE)
    pictures.membrane_traces(small, IMAGE, 'stages.0.embed.units.0')
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert [m for m in small.modules() if not m.training] == [frozen]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    with pytest.raises(ValueError, match='expected one image'):
        pictures.spike_raster(small, IMAGE.unsqueeze(0).unsqueeze(0))


def test_steps_are_profiled_one_by_one_and_put_back(small):
    data = (IMAGE.unsqueeze(0).repeat(2, 1, 1, 1), torch.tensor([1, 2]))
    reports = pictures.profile_steps(small, data, (1, 3), progress=False)
    assert [report.num_steps for report in reports] == [1, 3] and small.num_steps == 4
    left, right = pictures.accuracy_and_energy(reports).axes
    assert left.lines[0].get_ydata().tolist() == [report.top1 for report in reports]
    assert {line.get_label(): list(line.get_ydata()) for line in right.lines} == {
        name: [report.energy[name].mj for report in reports] for name in reports[0].energy
    }
    with pytest.raises(ValueError, match='has no num_steps'):
        pictures.profile_steps(timm.create_model('resnet18'), data, (1,))


def test_event_frames_have_pictures_too():
    model = lively(timm.create_model('msvit_2_256', num_steps=3))
    frames = torch.rand(3, 2, 32, 48).round()
    assert len(pictures.spike_raster(model, frames).axes) > 10
    assert len(pictures.attention_maps(model, frames).axes) == 4 + 3  # with color bars


def test_pictures_of_a_record_are_those_of_its_samples(small):
    """In training, with gradients, and of any sample of a batch."""
    images = torch.stack([IMAGE.flip(2), IMAGE])
    with timm_snn.record(small, membranes=True) as r:
        small(images)
    drawn = {
        'raster': (pictures.spike_raster(small, IMAGE), pictures.spike_raster(r, sample=1)),
        'maps': (pictures.attention_maps(small, IMAGE), pictures.attention_maps(r, IMAGE, sample=1)),
        'traces': (pictures.membrane_traces(small, IMAGE), pictures.membrane_traces(r, sample=1)),
    }
    for pair in drawn.values():
        pixels = [figure.canvas for figure in map(with_pixels, pair)]
        assert bytes(pixels[0].buffer_rgba()) == bytes(pixels[1].buffer_rgba())
    with timm_snn.record(small) as r:
        small(images)
    with pytest.raises(ValueError, match=r"no LIF neurons called 'stem\.units\.0'; there are none"):
        pictures.membrane_traces(r)


def with_pixels(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def test_evidence_names_the_classes_that_are_likeliest_at_any_step():
    answers = torch.zeros(3, 7).log_softmax(1)
    answers[0, 6], answers[2, 1] = 5, 9  # the first step says 6, the last one 1
    axes = pictures.evidence(answers, names='abcdefg').axes[0]
    assert len(axes.lines) == 7
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 4 and {text[0] for text in texts} >= {'b', 'g'}
    assert texts[-1] == f'b: {100 * answers.softmax(1)[2, 1]:.0f} %'
    places = [text.xy[1] for text in axes.texts]
    assert all(upper - lower > 0.07 for lower, upper in pairwise(places))  # none covers another
    with pytest.raises(ValueError, match=r'logits \[T, classes\] of one sample, got \[1, 3, 7\]'):
        pictures.evidence(answers.unsqueeze(0))
    with pytest.raises(ValueError, match='a name for each of 7 classes, got 2'):
        pictures.evidence(answers, names='ab')


def test_event_frames_show_negative_events_in_blue_and_both_as_dark():
    counts = torch.zeros(2, 2, 3, 4)
    counts[0, 0, 0, 0] = counts[0, 1, 0, 1] = 1  # negative, positive
    counts[1, :, 2, 3] = 1
    painted = pictures.paint_events(counts)
    assert painted[0, 0, 0].tolist() == [0, 0, 255] and painted[0, 0, 1].tolist() == [255, 0, 0]
    assert painted[1, 2, 3].tolist() == [0, 0, 0] and painted[1, 0, 0].tolist() == [255, 255, 255]
    figure = pictures.event_frames(counts, ['first', 'second'], 'some.raw')
    assert [axes.get_title() for axes in figure.axes] == ['first', 'second']
    assert figure.get_suptitle() == 'some.raw: positive red, negative blue, full colour from 1 events'
    assert (pictures.paint_events(torch.zeros(1, 2, 2, 2)) == 255).all()  # no events at all
    with pytest.raises(ValueError, match=r'counts \[T, 2, H, W\] .* got \[2, 3, 4\]'):
        pictures.event_frames(counts[0])


@pytest.mark.parametrize('by', ['input', 'stage'])
def test_parts_of_the_energy_add_up_to_each_convention(small, by):
    report = timm_snn.profile(small, IMAGE.unsqueeze(0), progress=False)
    axes = pictures.energy_parts(report, by).axes[0]
    parts = [[bar.get_width() for bar in container] for container in axes.containers]
    sums = [energy.mj for energy in report.energy.values()]
    assert [sum(bars) for bars in zip(*parts, strict=True)] == pytest.approx(sums)
    labels = [text.get_text() for text in axes.texts]
    times = report.energy['A'].mj / report.energy['ANN twin'].mj
    assert labels[0] == f'{report.energy["A"].mj:.3g} mJ, {times:.2g} x the twin' and 'twin' not in labels[-1]
    with pytest.raises(ValueError, match="expected by='input' or by='stage', got 'layer'"):
        pictures.energy_parts(report, 'layer')
