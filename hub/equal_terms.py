"""Draw docs/equal_terms.png: the accuracies of the families on equal terms, from hub/results.csv, against their work.

    python hub/equal_terms.py

Every point is the median of the seeds, and a line spans them.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from table import ROOT, Small, small_members

from timm_snn.files import write_whole
from timm_snn.profiling.style import INK, SPIKE, new_figure, styled
from timm_snn.training.console import give
from timm_snn.training.errors import script
from timm_snn.training.options import ArgumentParser


def draw(members: Sequence[Small]) -> Figure:
    """`members` with their accuracies; the best comes first."""
    with styled():
        figure = new_figure(7.5, 4.2)
        axes = figure.subplots()
        span = members[0].median - members[-1].median
        for i, small in enumerate(members):
            color = SPIKE if small.family == 'MSViT' else INK
            seeds, x = [float(top1) for top1 in small.top1], small.macs / 1e6
            axes.plot([x, x], [min(seeds), max(seeds)], color=color)
            axes.plot(x, small.median, 'o', color=color)
            covers = any(  # its name, on the right, the point of another
                abs(other.median - small.median) < 0.05 * span
                and (small.macs, i) < (other.macs, j) < (1.4 * small.macs, 0)
                for j, other in enumerate(members)
            )
            place = {'xytext': (-6, -3), 'ha': 'right'} if covers else {'xytext': (6, -3)}
            axes.annotate(small.family, (x, small.median), textcoords='offset points', color=color, **place)
        axes.set(
            xlabel='multiply-accumulates of an image (million)',
            ylabel='top-1 (%)',
            title='Families of 0.5 M parameters on CIFAR-10 (JPEG copy), one recipe',
        )
        axes.set_xlim(right=1.2 * max(small.macs for small in members) / 1e6)  # room for the names
    return figure


@script
def main(argv: Sequence[str] | None = None) -> None:
    ArgumentParser('hub/equal_terms.py', __doc__).parse_args(argv)
    path = ROOT / 'docs' / 'equal_terms.png'
    with write_whole(path) as unfinished:
        draw(small_members()).savefig(unfinished, format='png')
    give({'files': [str(path.relative_to(ROOT))]})


if __name__ == '__main__':
    main()
