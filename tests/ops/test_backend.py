import os
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import timm_snn
from timm_snn.ops import backend
from timm_snn.ops.backend import Backend
from timm_snn.ops.backends import reference
from timm_snn.ops.native.build import why_not_here

ON_A_CPU = 'torch' if why_not_here() else 'cpp'  # what 'auto' takes
needs_cpp = pytest.mark.skipif(why_not_here() is not None, reason=str(why_not_here()))


def add_first(monkeypatch, *rows: Backend) -> None:
    """Backends before all others, of which nothing has been imported."""
    added = {row.name: row for row in rows}
    monkeypatch.setattr(backend, '_BACKENDS', {**added, **backend._BACKENDS, **added})
    monkeypatch.setattr(backend, '_modules', {})
    forget_choices(monkeypatch)


def forget_choices(monkeypatch) -> None:
    """'auto' as in a new process."""
    for state in ('_choices', '_unprepared'):
        monkeypatch.setattr(backend, state, {})
    monkeypatch.setattr(backend, '_logged', set())


@pytest.fixture
def fakes(monkeypatch):
    """Two more backends: 'fake' runs float32 and counts its calls, 'broken' is never available."""
    fake, broken = types.ModuleType('fake_backend'), types.ModuleType('broken_backend')
    fake.calls = 0

    def counted(*args, **kwargs):
        fake.calls += 1
        return reference.lif(*args, **kwargs)

    fake.lif = counted
    fake.why_not = lambda x=None: 'it needs float32' if x is not None and x.dtype != torch.float32 else None
    broken.why_not = lambda x=None: "it needs unobtainium: pip install 'timm-snn[unobtainium]'"
    monkeypatch.setitem(sys.modules, 'fakes.fake', fake)
    monkeypatch.setitem(sys.modules, 'fakes.broken', broken)
    monkeypatch.setitem(sys.modules, 'fakes', types.ModuleType('fakes'))
    add_first(monkeypatch, Backend('broken', 'fakes.broken'), Backend('fake', 'fakes.fake'))
    return fake


X = torch.ones(2, 3)


def used_fake(fake, call) -> bool:
    before = fake.calls
    call()
    return fake.calls > before


def test_the_stronger_wish_wins(fakes, monkeypatch):
    def run(**kwargs):
        return used_fake(fakes, lambda: timm_snn.lif(X, **kwargs))

    assert run()  # auto: broken is skipped, fake comes before torch
    monkeypatch.setattr(backend, '_in_environment', 'torch')
    assert not run()
    timm_snn.set_backend('fake')
    assert run()
    with timm_snn.use_backend('torch'):
        assert not run()
        timm_snn.set_backend('fake')
        assert not run()
        with timm_snn.use_backend('fake'):
            assert run()
        assert not run()
        assert run(backend='fake')
    assert run()
    timm_snn.set_backend(None)
    assert not run()


def test_a_layers_argument_wins_over_the_context(fakes):
    layer = timm_snn.LIF(backend='torch')
    with timm_snn.use_backend('fake'):
        assert not used_fake(fakes, lambda: layer(X))


def test_a_named_backend_is_used_or_refused_never_replaced(fakes):
    with pytest.raises(
        timm_snn.BackendUnavailable, match=r"'broken', asked for by the argument `backend`, .*pip install"
    ):
        timm_snn.lif(X, backend='broken')
    with timm_snn.use_backend('fake'), pytest.raises(timm_snn.BackendUnavailable, match=r'use_backend.*float32'):
        timm_snn.lif(X.double())


def test_auto_falls_back_by_input_and_logs_its_choice_once(fakes, caplog):
    with caplog.at_level('INFO', logger='timm_snn'):
        for x in (X, X, X.double(), X.double()):
            timm_snn.lif(x)
    assert [record.getMessage().split(',')[0] for record in caplog.records] == [
        'LIF backend: fake',
        f'LIF backend: {ON_A_CPU}',
    ]


@needs_cpp
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_the_cpp_kernels_on_a_cpu(dtype, monkeypatch):
    taken = spy(monkeypatch)
    timm_snn.lif(X.to(dtype))
    assert taken == ['cpp']


class Own(timm_snn.ops.ATan):
    """A surrogate that kernels do not know."""


@pytest.mark.parametrize(
    'run',
    [
        lambda: timm_snn.lif(X, surrogate=Own()),
        lambda: torch.func.grad(lambda x: timm_snn.lif(x).sum())(X),
        lambda: torch.func.vmap(timm_snn.lif)(torch.ones(5, 2, 3)),
        lambda: make_fx(lambda x: timm_snn.lif(x))(X),
        lambda: follow(timm_snn.lif),
        lambda: torch.jit.trace(timm_snn.LIF().eval(), X, check_trace=False),
    ],
    ids=['own surrogate', 'func.grad', 'vmap', 'make_fx', 'dispatch mode', 'trace'],
)
def test_auto_takes_torch_where_kernels_would_not_be_seen_or_cannot_run(run, monkeypatch):
    timm_snn.lif(X)  # what was chosen before does not matter
    taken = spy(monkeypatch)
    run()
    assert set(taken) == {'torch'}


def follow(run):
    with FlopCounterMode(display=False):
        run(X)


def spy(monkeypatch) -> list[str]:
    """The names of the backends that run from now on."""
    taken, resolve = [], backend._resolve

    def spied(*args):
        taken.append(resolve(*args).name)
        return backend._BACKENDS[taken[-1]]

    monkeypatch.setattr(backend, '_resolve', spied)
    return taken


def test_auto_goes_on_without_what_cannot_be_built_and_says_so_once(fakes, monkeypatch, caplog):
    asked = []
    fakes.prepare = lambda: asked.append(1) or 'the compiler failed:\nerror, in two lines'
    with caplog.at_level('WARNING', logger='timm_snn'):
        for x in (X, X, X.bfloat16(), X.double(), X):
            assert not used_fake(fakes, lambda x=x: timm_snn.lif(x))
    (record,) = caplog.records
    assert 'the compiler failed:' in record.getMessage() and '\n' not in record.getMessage()
    assert 'TIMM_SNN_BACKEND=torch' in record.getMessage() and asked == [1]
    with pytest.raises(timm_snn.BackendUnavailable, match='the compiler failed'):
        timm_snn.lif(X, backend='fake')
    assert 'not fake: the compiler failed' in timm_snn.backend_report()


def test_of_processes_that_are_launched_together_one_warns(fakes, monkeypatch, caplog):
    fakes.prepare = lambda: 'the compiler failed'
    monkeypatch.setenv('LOCAL_RANK', '1')
    with caplog.at_level('WARNING', logger='timm_snn'):
        timm_snn.lif(X)
    assert not caplog.records


def test_threads_wait_for_one_that_builds_and_one_warning_is_given(fakes, caplog):
    barrier = threading.Barrier(4)
    fakes.prepare = lambda: 'the compiler failed'
    with caplog.at_level('WARNING', logger='timm_snn'), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: (barrier.wait(), timm_snn.lif(X)), range(4)))
    assert len(caplog.records) == 1


def test_the_report_says_what_auto_takes_and_why_nothing_before_it(fakes):
    lines = dict(line.split(': ', 1) for line in timm_snn.backend_report().splitlines() if line.startswith("'auto'"))
    assert lines["'auto' on a CPU"] == 'fake; not broken: see above'
    assert lines["'auto' inside torch.compile"] == 'fake; not broken: see above'
    if not torch.cuda.is_available():
        assert lines["'auto' on CUDA"] == 'torch finds no such device'


@needs_cpp
def test_the_report_on_this_machine():
    assert "'auto' on a CPU: cpp; not compile: inside torch.compile alone\n" in timm_snn.backend_report()
    assert "'auto' inside torch.compile: compile\n" in timm_snn.backend_report()


@pytest.mark.parametrize(
    'ask',
    [
        lambda: timm_snn.set_backend('trition'),
        lambda: timm_snn.use_backend('trition').__enter__(),
        lambda: timm_snn.lif(X, backend='trition'),
        lambda: timm_snn.LIF(backend='trition'),
    ],
)
def test_an_unknown_name_is_refused_at_once(ask):
    with pytest.raises(ValueError, match=r"unknown LIF backend 'trition'.*use one of \['auto', .*'torch'\]"):
        ask()


def test_auto_passes_kernels_by_that_do_not_know_a_surrogate(fakes, monkeypatch):
    assert used_fake(fakes, lambda: timm_snn.lif(X, surrogate=Own()))
    add_first(monkeypatch, Backend('fake', 'fakes.fake', any_surrogate=False))
    assert not used_fake(fakes, lambda: timm_snn.lif(X, surrogate=Own()))
    assert used_fake(fakes, lambda: timm_snn.lif(X, surrogate='atan'))


def test_a_backend_whose_library_is_not_installed_is_unavailable(monkeypatch, tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'lacking_backend.py').write_text('import a_library_that_is_not_here')
    monkeypatch.syspath_prepend(tmp_path)
    add_first(monkeypatch, Backend('lacking', 'own.lacking_backend'))
    timm_snn.lif(X)  # 'auto' goes on to torch
    with pytest.raises(timm_snn.BackendUnavailable, match='pip install a_library_that_is_not_here'):
        timm_snn.lif(X, backend='lacking')
    assert "lacking  No module named 'a_library_that_is_not_here'" in timm_snn.backend_report()


def test_a_broken_library_is_not_taken_for_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own' / 'faulty_backend.py').write_text('from json import no_such_name')
    monkeypatch.syspath_prepend(tmp_path)
    add_first(monkeypatch, Backend('faulty', 'own.faulty_backend'))
    for call in (timm_snn.backend_report, lambda: timm_snn.lif(X), lambda: timm_snn.set_backend('faulty')):
        with pytest.raises(ImportError, match='no_such_name'):
            call()


def test_compiling_imports_the_backends_that_auto_tries(fakes):
    torch.compile(timm_snn.LIF(), fullgraph=True, backend='eager')(X)
    assert {'broken', 'fake', 'torch'} <= set(backend._modules) and fakes.calls > 0


def test_logging_the_choice_does_not_compile_anew(monkeypatch):
    forget_choices(monkeypatch)
    compiler = CompileCounter()
    layer = timm_snn.LIF()
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    compiled(X)
    layer(X)
    compiled(X)
    assert compiler.frame_count == 1 and backend._logged == {ON_A_CPU}


def test_report_of_a_choice_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(backend, '_in_environment', 'nope')
    assert 'in use: nope (by TIMM_SNN_BACKEND), which does not exist' in timm_snn.backend_report()


def test_report_names_every_backend_and_the_reason(fakes):
    report = timm_snn.backend_report()
    assert 'unobtainium' in report and 'torch    available' in report and 'auto (by default)' in report


def in_fresh_process(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-c', code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_the_environment_is_read():
    code = 'import torch, timm_snn; print(timm_snn.backend_report()); timm_snn.lif(torch.ones(1, 1))'
    assert 'torch (by TIMM_SNN_BACKEND)' in in_fresh_process(code, TIMM_SNN_BACKEND='torch').stdout
    wrong = in_fresh_process(code, TIMM_SNN_BACKEND='nope')
    assert "unknown LIF backend 'nope', asked for by TIMM_SNN_BACKEND" in wrong.stderr
