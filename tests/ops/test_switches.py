"""Switches belong to a thread or task, and activation checkpointing keeps all of them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch._dynamo.testing import CompileCounter

import timm_snn
from tests.conftest import lively
from timm_snn.ops import backend, packed, sparse_conv, sparse_spikes
from timm_snn.ops.native.build import why_not_here
from timm_snn.ops.switches import Switches, kept, switched, switches

needs_cpp = pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here()))


def test_eight_threads_do_not_change_each_others_switches():
    """Each turns its own switch while all others have theirs turned."""
    everybody = threading.Barrier(8, timeout=60)

    def turn(number: int) -> list[Switches]:
        seen = []
        for _ in range(20):
            everybody.wait()
            with switched(backend=f'backend {number}'):
                everybody.wait()
                seen.append(switches())
                with switched(max_density=number / 8):
                    everybody.wait()
                    seen.append(switches())
                everybody.wait()
            everybody.wait()
            seen.append(switches())
        return seen

    with ThreadPoolExecutor(8) as pool:
        for number, seen in enumerate(pool.map(turn, range(8))):
            one = Switches(backend=f'backend {number}')
            two = Switches(backend=f'backend {number}', max_density=number / 8)
            assert seen == [one, two, Switches()] * 20


def test_eight_threads_run_the_backend_that_each_asked_for(monkeypatch):
    """With models, whose neurons look the backend up."""
    everybody = threading.Barrier(8, timeout=60)
    model, x = timm.create_model('msvit_4_96').eval(), torch.rand(1, 1, 28, 28)

    def run(name: str) -> set[tuple[str, str]]:
        found = set()
        for _ in range(3):
            with timm_snn.use_backend(name):
                everybody.wait()
                found.add(backend.asked_for(None))
                with torch.no_grad():
                    model(x)
                found.add(backend.asked_for(None))
        return found

    names = ['torch', 'auto'] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, names)) == [{(name, 'use_backend')} for name in names]


def test_tasks_do_not_change_each_others_switches():
    async def turn(number: int, everybody: asyncio.Event) -> Switches:
        with switched(max_density=number / 8):
            if number == 7:
                everybody.set()
            await everybody.wait()
            return switches()

    async def all_of_them() -> list[Switches]:
        everybody = asyncio.Event()
        return await asyncio.gather(*(turn(number, everybody) for number in range(8)))

    assert asyncio.run(all_of_them()) == [Switches(max_density=number / 8) for number in range(8)]


def test_a_function_keeps_the_switches_of_the_moment_in_any_thread():
    with switched(backend='torch', max_density=0.5):
        function = kept(lambda _: switches())
    expected = Switches(backend='torch', max_density=0.5)
    with ThreadPoolExecutor(1) as pool:
        assert function(None) == pool.submit(function, None).result() == expected
        assert switches() == pool.submit(switches).result() == Switches()


def test_a_turn_of_a_switch_compiles_anew_and_turning_back_does_not():
    compiler = CompileCounter()
    factors = {None: 1, True: 2, False: 3}
    compiled = torch.compile(lambda x: x * factors[switches().skips_zeros], fullgraph=True, backend=compiler)
    x = torch.ones(2)
    for _ in range(3):
        assert compiled(x).sum() == 2
        for choice, factor in factors.items():
            with switched(skips_zeros=choice):
                assert compiled(x).sum() == 2 * factor
    assert compiler.frame_count == 3


@needs_cpp
@pytest.mark.parametrize('process', [None, 'cpp'])
def test_checkpointing_keeps_every_switch_of_the_forward_pass(process, monkeypatch):
    """Backward is called outside the block, in float32, where a sum in another order would flip spikes."""
    ran = []
    run = sparse_conv._call
    monkeypatch.setattr(sparse_conv, '_call', lambda name, *args: ran.append(name) or run(name, *args))
    model = lively(timm.create_model('msvit_4_96')).train()
    x = torch.rand(4, 1, 28, 28)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for checkpointing in (False, True):
        model.load_state_dict(state)
        model.set_grad_checkpointing(checkpointing)
        ran.clear()
        timm_snn.set_backend(process)
        with sparse_spikes(max_density=1.0), timm_snn.use_backend('torch' if process is None else 'auto'):
            loss = model(x).square().sum()
        timm_snn.set_backend(None)
        forward = ran.count('forward')
        with timm_snn.use_backend('cpp'):  # another one than that of the forward pass
            results.append(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))
        assert forward > 0 and (ran.count('forward') > forward) == checkpointing  # zeros were skipped again
    for direct, recomputed in zip(*results, strict=True):
        assert torch.equal(direct, recomputed)


def test_packed_spikes_packs_what_checkpointing_keeps(monkeypatch):
    """The inputs of the blocks; what a block's backward pass computes again lives no longer than that."""
    packed_shapes = []
    pack = packed._pack

    def noted(x: torch.Tensor):
        result = pack(x)
        if result is not None:
            packed_shapes.append(tuple(x.shape))
        return result

    monkeypatch.setattr(packed, '_pack', noted)
    model = lively(timm.create_model('msvit_4_96')).train()
    model.set_grad_checkpointing()
    inputs = []
    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda _, args: inputs.append(tuple(args[0].shape)))
    x = torch.rand(16, 1, 28, 28)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    model.load_state_dict(state)
    inputs.clear()
    with timm_snn.ops.packed_spikes():
        loss = model(x).square().sum()
    assert inputs and set(inputs) <= set(packed_shapes)
    for direct, recomputed in zip(plain, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        assert torch.equal(direct, recomputed)
