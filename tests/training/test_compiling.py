"""Models compiled by regions: how many graphs, for which batches, and what is left as it was. Without Inductor."""

import copy
from functools import partial

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounter

from timm_snn.ops.backends import inductor
from timm_snn.training import compiling
from timm_snn.training.errors import UserError

TINY = dict(embed_dims=(8, 8, 16), depths=(1, 1, 3), num_heads=2, num_steps=2, in_chans=1, num_classes=3)


@pytest.fixture
def counter(monkeypatch):
    """What compiles instead of Inductor, and counts graphs."""
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compiling.torch, 'compile', partial(torch.compile, backend=counter))
    with torch._dynamo.config.patch(recompile_limit=compiling._MOST_GRAPHS):
        yield counter
    torch.compiler.reset()


def tiny(**kwargs):
    return timm.create_model('msvit_4_96', **TINY, **kwargs).train()


def compile_blocks(model):
    for region in compiling.regions_of(model):
        compiling.compile_in_place(region)
    return model


def images(batch):
    return torch.rand(batch, 1, 8, 8)


def test_blocks_that_are_alike_share_a_graph_and_no_batch_compiles_anew(counter):
    model = compile_blocks(tiny())
    model(images(4)).sum().backward()
    kinds = counter.frame_count
    assert kinds == 3  # of five blocks
    model(images(4)).sum().backward()
    model(images(3)).sum().backward()
    assert counter.frame_count == kinds
    model.eval()
    for batch in (4, 3, 1, 4):
        with torch.inference_mode():
            model(images(batch))
    assert counter.frame_count == 2 * kinds
    model.train()(images(4)).sum().backward()
    assert counter.frame_count == 2 * kinds


def test_what_is_compiled_for_updates_is_compiled_anew_for_other_shapes(counter, monkeypatch):
    monkeypatch.setattr(inductor, 'why_not', lambda _: None)
    model, said = tiny(), []
    blocks = compiling.CompiledBlocks(model, torch.device('cpu'), said.append)
    for num_steps in (1, 2):
        model.num_steps = num_steps
        blocks.forget()
        for _ in range(2):
            with blocks.first('update'):
                model(images(4)).sum().backward()
    assert counter.frame_count == 2 * 3 and len(said) == 4  # kinds of blocks; what it waits for, and how long


def test_stochastic_depth_draws_the_same_and_its_rates_are_not_compiled(counter):
    model = tiny(drop_path_rate=0.5)
    compiled = compile_blocks(copy.deepcopy(model))
    x = images(4)
    for _ in range(2):
        logits = []
        for net in (model, compiled):
            torch.manual_seed(1)
            logits.append(net(x))
        torch.testing.assert_close(*logits)
    attentions = [block.attn for stage in model.stages for block in stage.blocks]
    assert counter.frame_count < 2 * len(attentions) and not any(
        isinstance(region, compiling.DropPath) for region in compiling.regions_of(compiled)
    )


def test_keys_and_copies_are_those_of_the_model(counter):
    model = tiny()
    keys = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == keys
    copy.deepcopy(model)(images(2))
    assert counter.frame_count == 0


def test_checkpointed_and_frozen_blocks(counter):
    """Gradients are those of the model as it was."""
    model = tiny()
    model.set_grad_checkpointing()
    model.stages[0].requires_grad_(False)
    model.stem.requires_grad_(False)
    compiled = compile_blocks(copy.deepcopy(model))
    x = images(4)
    for net in (model, compiled):
        net(x).square().sum().backward()
    for ours, expected in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    assert counter.frame_count > 0


def test_a_model_of_others_is_one_region():
    model = timm.create_model('resnet10t')
    assert compiling.regions_of(model) == [model]


def test_says_once_what_it_waits_for(counter):
    lines = []
    first = compiling.CompiledBlocks(tiny(), torch.device('cpu'), lines.append).first
    for _ in range(2):
        for what in ('update', 'evaluation'):
            with first(what):
                pass
    assert [line.split(',')[0] for line in lines[::2]] == [
        f'compiling 5 regions of the model in the first {what}' for what in ('update', 'evaluation')
    ]
    assert lines[1].startswith('the first update took 0.0 s') and len(lines) == 4


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(inductor, '_CPP_COMPILERS', [])
    with pytest.raises(UserError, match=r'cannot compile: .* no C\+\+ compiler.*or train without --compile'):
        compiling.CompiledBlocks(tiny(), torch.device('cpu'), print)


def test_a_backend_that_was_chosen_stays(monkeypatch):
    monkeypatch.setattr(compiling, 'why_not_here', lambda: None)
    monkeypatch.delenv('TIMM_SNN_BACKEND', raising=False)
    assert compiling.backend_to_compile(torch.device('cpu')) == 'cpp'
    assert compiling.backend_to_compile(torch.device('cuda')) is None
    monkeypatch.setenv('TIMM_SNN_BACKEND', 'torch')
    assert compiling.backend_to_compile(torch.device('cpu')) is None
