"""Pictures of benchmarks show how many times as fast as a peer something is."""

from pathlib import Path

import pytest

pytest.importorskip('matplotlib')
BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
HEAD = {'device': 'a processor', 'date': 'today'}


@pytest.fixture
def ratios(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ratios

    return ratios


def test_the_peer_is_at_one_and_less_time_is_faster(ratios):
    rows = [
        {'variant': 'timm_snn', 'pass': 'forward', 'ms': 2.0, 'spread': 1.5},
        {'variant': 'spikingjelly 2', 'pass': 'forward', 'ms': '8.0', 'spread': ''},  # as a CSV file gives it
        {'variant': 'timm_snn', 'pass': 'alone', 'ms': 3.0},
        {'variant': 'failed', 'pass': 'forward', 'ms': None},
    ]
    figure = ratios.draw('lif-float32', HEAD, rows)
    assert len(figure.axes) == 1  # nothing stands beside the pass 'alone'
    axes = figure.axes[0]
    assert axes.get_title(loc='left') == 'forward' and axes.get_xscale() == 'log'
    assert [text.get_text() for text in axes.texts] == ['4', '1']
    assert [label.get_text() for label in axes.get_yticklabels()] == ['timm_snn', 'spikingjelly 2']
    whisker = axes.lines[0].get_xdata()
    assert list(whisker) == [2, 8]  # of 4, times and by 2, which are 1.5 apart
    assert figure.get_suptitle().startswith('lif-float32: times as fast as spikingjelly 2\na processor, today')


def test_more_in_a_second_is_faster_and_sweeps_are_lines(ratios):
    rows = [
        {'format': 'nmnist', 'variant': name, 'M events/s': rate} for name, rate in (('ours', 6), ('spikingjelly 2', 4))
    ]
    assert [text.get_text() for text in ratios.draw('events', HEAD, rows).axes[0].texts] == ['1.5', '1']
    sweep = [
        {'variant': name, 'steps': steps, 'ms': ms * steps}
        for steps in (1, 2, 4)
        for name, ms in (('ours', 2), ('spikingjelly 2', 3))
    ]
    lines = ratios.draw('model-msvit_4_96-sweep-steps', HEAD, sweep).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[1.5] * 3, [1] * 3]
    with pytest.raises(ValueError, match="how to draw the table 'other' is not said"):
        ratios.draw('other', HEAD, rows)


def test_every_stored_picture_can_be_drawn_again(ratios, tmp_path):
    for table in sorted(BENCHMARKS.glob('results/*/*.csv')):
        if table.with_suffix('.png').exists():
            copy = tmp_path / table.name
            copy.write_text(table.read_text(encoding='utf-8'), encoding='utf-8')
            ratios.main([str(copy)])
            assert copy.with_suffix('.png').stat().st_size > 0
