"""An answer as HTML: what was said, the evidence, the spikes of every stage, the energy. Nothing to fetch.

Text and lines have the colours of the page around, light or dark; series have those of Okabe and Ito, which people of
every colour vision tell apart.
"""

import itertools
import math
from base64 import b64encode
from html import escape
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from ..profiling.energy import ANN_TWIN
from ..profiling.style import CLASSES
from .answers import Answer

__all__ = [
    'CSS',
    'draw_energy',
    'draw_evidence',
    'draw_frame',
    'draw_spikes',
    'tell',
    'tell_exit',
    'tell_mistake',
    'tell_so_far',
    'tell_to_upload',
]

COLORS = (*CLASSES, '#e69f00')
SHOWN = len(COLORS)  # classes
CONVENTIONS_OF = {'A': 'Spikingformer', 'B': 'SDT', 'C': 'Spikformer'}  # who counts so

CSS = """
.snn { color: var(--body-text-color); font-size: 14px; line-height: 1.45 }
.snn h3 { margin: 0 0 6px; font-size: 14px; font-weight: 600 }
.snn p { margin: 0 0 6px }
.snn .dim { opacity: .75; font-size: 12px }
.snn .class { font-size: 30px; font-weight: 650; line-height: 1.2; margin: 0 }
.snn svg { display: block; width: 100%; max-width: 560px; height: auto; margin-bottom: 6px }
.snn svg text { fill: currentColor; font-size: 12px }
.snn .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(126px, 1fr)); gap: 12px;
  margin-bottom: 10px }
.snn figure { margin: 0 }
.snn figure img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 4px;
  margin: 0 }
.snn figcaption { font-size: 12px; line-height: 1.35; margin-top: 4px; text-align: left }
.snn .steps { display: flex; align-items: flex-end; gap: 2px; height: 22px; margin-top: 4px }
.snn .steps i { flex: 1; max-width: 14px; background: currentColor; opacity: .25; min-height: 1px }
.snn .steps i.now { opacity: .9 }
.snn table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 0 0 6px }
.snn table, .snn tr, .snn table td, .snn table th { border: 0 }
.snn table td, .snn table th { padding: 3px 8px 3px 0; text-align: right; font-weight: 400; white-space: nowrap }
.snn table th { font-size: 12px; opacity: .75 }
.snn table td:first-child, .snn table th:first-child { text-align: left; white-space: normal }
.snn table td:last-child { width: 22%; padding-right: 0 }
.snn .bar { position: relative; height: 10px }
.snn .bar i { position: absolute; inset: 0 auto 0 0; background: #0072b2; border-radius: 2px; opacity: .4 }
.snn .bar i + i, .snn .bar.twin i { opacity: 1 }
.snn .bar.twin i { background: #808080 }
#gallery .grid-wrap { height: auto; min-height: 0; padding: 6px; overflow: hidden }
#gallery .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; gap: 6px; height: auto }
#gallery img { image-rendering: pixelated }
#gallery .caption-label { font-size: 10px; padding: 0 4px; max-width: 100%; overflow: hidden; text-overflow: ellipsis }
"""


def tell(answer: Answer, names: list[str]) -> str:
    """The class, and in a sentence how it came about."""
    T, report = answer.num_steps, answer.report
    guess = answer.guess(T)
    since = answer.decided()
    steps = f'T = {T} steps; this class is ahead from step {since} on' if T > 1 else 'its only step'
    rate = report.total.firing_rate
    firing = '' if rate is None else f' At a step {rate:.1%} of the neurons fire.'
    return f"""<div class="snn"><p class="class" id="class">{escape(names[guess])}</p>
<p>with {answer.probabilities[-1, guess]:.1%} after {steps}.{firing}</p></div>"""


def tell_so_far(name: str, step: int, num_steps: int) -> str:
    return f"""<div class="snn"><p class="class" id="class">{escape(name)}</p>
<p>until frame {step} of {num_steps}: every membrane goes on from frame to frame.</p></div>"""


def tell_mistake(text: str) -> str:
    return f'<div class="snn"><p id="mistake" role="alert"><b>That did not work.</b> {escape(text)}</p></div>'


def tell_to_upload(what: str) -> str:
    return f'<div class="snn"><p>Upload a {what}: there are no examples of the data of this model.</p></div>'


def draw_evidence(probabilities: Tensor, names: list[str], num_steps: int, step: int, stop: int | None = None) -> str:
    """Probabilities [t, classes] of the classes that are likeliest at any of these steps, of `num_steps` in all."""
    classes = probabilities.amax(0).topk(min(SHOWN, len(names))).indices.tolist()
    left, top, width, height = 40, 10, 236, 140

    def place(t: int, p: float) -> tuple[float, float]:
        return left + width * (0.5 if num_steps == 1 else (t - 1) / (num_steps - 1)), top + height * (1 - p)

    parts = []
    for share in (0, 0.5, 1):
        _, y = place(1, share)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".15"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end" opacity=".7">{share:.0%}</text>')
    every = math.ceil(num_steps / 10)
    for t in range(1, num_steps + 1, every):
        parts.append(f'<text x="{place(t, 0)[0]}" y="{top + height + 17}" text-anchor="middle" opacity=".7">{t}</text>')
    x = place(step, 0)[0]
    parts.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{top + height}" stroke="currentColor" opacity=".5"/>')
    if stop:
        x = place(stop, 0)[0]
        parts.append(f'<path d="M{x - 5} {top - 8}h10l-5 8z" fill="currentColor"><title>stops here</title></path>')
    last = probabilities[-1]
    labels = spread([place(1, float(last[c]))[1] for c in classes], 14, place(1, 0)[1])
    for color, c, y in zip(COLORS, classes, labels, strict=False):
        points = [place(t, float(p[c])) for t, p in enumerate(probabilities, 1)]
        line = ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
        dots = ''.join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<g fill="{color}">{dots}</g>')
        name = names[c] if len(names[c]) <= 14 else f'{names[c][:13]}…'
        x = left + width + 10
        parts.append(f'<rect x="{x}" y="{y - 4:.1f}" width="8" height="8" rx="2" fill="{color}"/>')
        parts.append(
            f'<text x="{x + 13}" y="{y + 4:.1f}"><tspan font-weight="600">{escape(name)}</tspan> {last[c]:.0%}</text>'
        )
    return f"""<div class="snn"><h3>Evidence of the classes, step by step</h3>
<svg viewBox="0 0 410 172" role="img" aria-label="Probability of each class after each step">{''.join(parts)}</svg>
<p class="dim">Softmax of the mean of the outputs until each step. Line: the step that is shown.{
        ' Triangle: the early exit.' if stop else ''
    }</p></div>"""


def spread(heights: list[float], gap: float, lowest: float) -> list[float]:
    """The heights of labels, which grow downwards, apart and not below the lowest, in their order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for above, i in itertools.pairwise(order):
        placed[i] = max(placed[i], placed[above] + gap)
    for i in reversed(order):
        placed[i], lowest = min(placed[i], lowest), min(placed[i], lowest) - gap
    return placed


def draw_spikes(answer: Answer, step: int, seen: Image.Image) -> str:
    """What the model sees at a step, and where each stage fires then."""
    figures = [f'<figure>{image(seen)}<figcaption>input</figcaption></figure>']
    for stage in answer.stages:
        full = float(stage.rates.max()) or 1.0
        colors = colormaps['cividis'](stage.rates[step - 1].cpu().numpy() / full)[..., :3]
        rates = stage.rates.mean((1, 2)).tolist()
        most = max(rates) or 1.0
        bars = ''.join(
            f'<i{" class=now" * (t == step)} style="height:{100 * rate / most:.0f}%" title="step {t}: {rate:.1%}"></i>'
            for t, rate in enumerate(rates, 1)
        )
        figures.append(
            f'<figure>{image(Image.fromarray((255 * colors).astype(np.uint8)))}<figcaption>{escape(stage.name)}: '
            f'{rates[step - 1]:.1%}<br><span class="dim">of {stage.neurons:,}</span></figcaption>'
            f'<div class="steps">{bars}</div></figure>'
        )
    none = '' if answer.stages else '<p>No neuron of this model fires in a map.</p>'
    return f"""<div class="snn"><h3>Spikes of every stage at step {step} of {answer.num_steps}</h3>
<div class="maps">{''.join(figures)}</div>{none}
<p class="dim">A bright place is one where many neurons of the stage fire at this step, on a scale of its own.
Percent: the share that fires; bars: the same at every step. Without neurons inside attention.</p></div>"""


def draw_frame(seen: Image.Image, step: int, num_steps: int) -> str:
    """The frame that plays."""
    return f"""<div class="snn"><h3>Frame {step} of {num_steps}</h3>
<figure style="max-width:280px">{image(seen)}</figure>
<p class="dim">Blue: pixels that became brighter; red: darker.</p></div>"""


def image(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, 'PNG')
    return f'<img alt="" src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'


def tell_exit(answer: Answer, names: list[str], stop: int) -> str:
    """What stopping after that step changes."""
    T = answer.num_steps
    if stop == T:
        text = f'It is not so sure before the end: all {T} steps run, and nothing is saved.'
    else:
        least, most = f'{min(answer.saved(stop)):.0%}', f'{max(answer.saved(stop)):.0%}'
        span = most if least == most else f'{least} to {most}'
        early, late = answer.guess(stop), answer.guess(T)
        same = (
            f'the class is the same, {escape(names[late])}'
            if early == late
            else f'<b>the class differs</b>: {escape(names[early])} instead of {escape(names[late])}'
        )
        text = (
            f'It stops after step {stop} of {T}, when its class leads the next by {answer.confidence(stop):.2f}; '
            f'{same}. By the three conventions that saves {span} of the energy.'
        )
    return f'<div class="snn" style="margin-bottom:14px"><p id="exit">{text}</p></div>'


def draw_energy(answer: Answer, stop: int) -> str:
    """A table of the estimates after that step and after all, in the three conventions and beside the ANN twin."""
    caveat, twin = answer.report.caveat, answer.report.energy[ANN_TWIN].mj
    most = max(energy.mj for energy in answer.report.energy.values())
    rows = ''
    for name, paper in CONVENTIONS_OF.items():
        early, full = (report.energy[name].mj for report in (answer.reports[stop], answer.report))
        bars = ''.join(f'<i style="width:{100 * mj / most:.1f}%"></i>' for mj in (full, early))
        rows += row(f'{name}, {paper}', microjoules(early), microjoules(full), f'{full / twin:.2f}', bar=bars)
    bar = f'<i style="width:{100 * twin / most:.1f}%"></i>'
    rows += row('ANN twin', '', microjoules(twin), '1', bar=bar, kind=' twin')
    header = ('µJ, by convention', f'{stop} of {answer.num_steps} steps', 'all', '/ twin', '')
    head = ''.join(f'<th>{cell}</th>' for cell in header)
    return f"""<div class="snn"><h3>Energy, estimated</h3>
<table><tr>{head}</tr>{rows}</table>
<p class="dim">{caveat[0].upper()}{caveat[1:]}, neurons or memory, which cost more than arithmetic on most chips.
The twin is this network with real numbers for spikes, run once. Dark: until the early exit.</p></div>"""


def row(*cells: str, bar: str, kind: str = '') -> str:
    return f'<tr>{"".join(f"<td>{cell}</td>" for cell in cells)}<td><div class="bar{kind}">{bar}</div></td></tr>'


def microjoules(mj: float) -> str:
    return f'{1000 * mj:,.0f}' if mj >= 1 else f'{1000 * mj:.1f}'
