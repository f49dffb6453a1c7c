"""The layout of the page, and what happens when something in it is used."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import ImageChops
from torch import Tensor

from ..training.errors import UserError, one_line_errors
from . import html
from .answers import Answer, play, watch
from .inputs import Subject, has_bright_ground, open_subject

os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # gradio sends the address of its user otherwise

import gradio as gr

__all__ = ['LAUNCH', 'make_page']

PAUSE = 0.4  # seconds for which a frame of a recording is shown
FONT = ('system-ui', 'sans-serif')  # those of the theme itself may be asked for from a server

# Arguments of `launch` wherever the page runs.
LAUNCH: dict[str, Any] = dict(
    theme=gr.themes.Base(primary_hue='blue', font=FONT, font_mono=('ui-monospace', 'monospace')),
    css=html.CSS,
    footer_links=[],
    share=False,
    ssr_mode=False,
    max_file_size='512mb',
)

INTRODUCTION = """## A spiking transformer at work
A picture is shown to the network for T steps, a recording frame by frame. Neurons answer in spikes, and the evidence
for a class grows from step to step."""

# A sketch pad of gradio has no tool in hand at first.
TAKE_BRUSH = (
    """() => { setTimeout(() => document.querySelector('#sketch button[aria-label="Brush"]')?.click(), 300) }"""
)

SOURCES = ('Examples', 'Draw', 'Upload')

Views = dict[Any, Any]  # what components show next


def make_page(names: Sequence[str]) -> gr.Blocks:
    """The page, with these models to choose from; the first is the one that it begins with.

    Raises: UserError for a first model that cannot be opened.
    """
    opened = functools.lru_cache(maxsize=4)(open_subject)
    opened(names[0])

    with gr.Blocks(title='timm_snn', analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        shown = gr.State()  # (Subject's name, its input, Answer)
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                model = gr.Dropdown(list(names), value=names[0], label='Model', elem_id='model')
                # no gr.Tabs: those of gradio 6.31 cannot be hidden
                source = gr.Radio(list(SOURCES), value=SOURCES[0], show_label=False, elem_id='source')
                with gr.Column() as examples:
                    gallery = gr.Gallery(
                        show_label=False, columns=5, height='auto', format='png', allow_preview=False, buttons=[],
                        object_fit='contain', interactive=False, elem_id='gallery',
                    )  # fmt: skip
                with gr.Column(visible=False) as draw:
                    sketch = gr.Sketchpad(
                        type='pil', show_label=False, canvas_size=(280, 280), fixed_canvas=True, transforms=(),
                        brush=gr.Brush(default_size=22, colors=['#000000'], color_mode='fixed'), elem_id='sketch',
                        layers=False, placeholder=' ',
                    )  # fmt: skip
                    classify_sketch = gr.Button('Classify', variant='primary', elem_id='classify')
                with gr.Column(visible=False) as upload:
                    file = gr.File(show_label=False, height=140, elem_id='file')
                    invert = gr.Checkbox(label='Dark on a bright ground: invert it', elem_id='invert')
            with gr.Column(scale=4, min_width=320):
                said = gr.HTML(elem_id='said')
                evidence = gr.HTML(elem_id='evidence')
                lead = gr.Slider(
                    0, 1, value=0.5, step=0.01, label='Early exit when a class leads by', elem_id='threshold'
                )
                energy = gr.HTML(elem_id='energy')
            with gr.Column(scale=5, min_width=320):
                step_slider = gr.Slider(1, 2, value=1, step=1, label='Step', elem_id='step')
                spikes = gr.HTML(elem_id='spikes')

        def views(subject: Subject, x: Tensor, answer: Answer, step: int, threshold: float) -> Views:
            """What depends on the sliders."""
            stop = answer.stop(threshold)
            return {
                evidence: html.draw_evidence(answer.probabilities, subject.names, answer.num_steps, step, stop),
                spikes: html.draw_spikes(answer, step, subject.seen(x, step)),
                energy: html.tell_exit(answer, subject.names, stop) + html.draw_energy(answer, stop),
            }

        def classify(subject: Subject, x: Tensor, threshold: float) -> Iterator[Views]:
            """All views of the answer; of a recording first what is known after each frame, as it plays."""
            with one_line_errors(f'classify with {subject.name}'):
                if subject.frames:
                    yield from play_frames(subject, x)
                answer = watch(subject.model, x)
            T = answer.num_steps
            yield {
                said: html.tell(answer, subject.names),
                step_slider: gr.update(value=T, maximum=max(T, 2), visible=T > 1),
                shown: (subject.name, x, answer),
                **views(subject, x, answer, T, threshold),
            }

        def play_frames(subject: Subject, frames: Tensor) -> Iterator[Views]:
            so_far: list[Tensor] = []
            T = len(frames)
            try:
                for probabilities in play(subject.model, frames):
                    so_far.append(probabilities)
                    number = len(so_far)
                    yield {
                        said: html.tell_so_far(subject.names[int(probabilities.argmax())], number, T),
                        evidence: html.draw_evidence(torch.stack(so_far), subject.names, T, number),
                        spikes: html.draw_frame(subject.seen(frames, number), number, T),
                    }
                    time.sleep(PAUSE)
            except ValueError as error:  # some families see several steps at once
                gr.Warning(escape(f'It is classified as a whole and does not play: {error}'))

        def in_page(run: Callable[..., Iterator[Views]]) -> Callable[..., Iterator[Views]]:
            """Decorator: a mistake of the visitor's is one message, in the place of the answer."""

            @functools.wraps(run)
            def wrapped(*args: Any) -> Iterator[Views]:
                try:
                    yield from run(*args)
                except UserError as error:
                    yield without_answer(html.tell_mistake(str(error)))

            return wrapped

        def without_answer(text: str) -> Views:
            empty = dict.fromkeys((evidence, spikes, energy), '')
            return {said: text, shown: None, step_slider: gr.update(visible=False), **empty}

        def turn_to(chosen: str) -> Views:
            parts = zip(SOURCES, (examples, draw, upload), strict=True)
            return {part: gr.update(visible=name == chosen) for name, part in parts}

        @in_page
        def choose(name: str, threshold: float) -> Iterator[Views]:
            subject = opened(name)
            pictures, is_of_pictures = subject.examples(), subject.frames is None
            possible = [bool(pictures), subject.takes_drawings, True]
            sources = [name for name, is_possible in zip(SOURCES, possible, strict=True) if is_possible]
            yield {
                source: gr.update(choices=sources, value=sources[0]),
                gallery: gr.update(value=pictures, selected_index=None),
                file: gr.update(value=None),
                invert: gr.update(value=False, visible=is_of_pictures and subject.mode == 'L'),
                **turn_to(sources[0]),
            }
            if pictures:
                yield from classify(subject, subject.example(0), threshold)
            else:
                what = 'picture' if is_of_pictures else 'recording of an event camera'
                yield without_answer(html.tell_to_upload(what))

        @in_page
        def pick(name: str, threshold: float, event: gr.SelectData) -> Iterator[Views]:
            subject = opened(name)
            yield from classify(subject, subject.example(event.index), threshold)

        @in_page
        def classify_drawing(name: str, sketch: Any, threshold: float) -> Iterator[Views]:
            subject = opened(name)
            inks = [layer.getchannel('A') for layer in (sketch or {}).get('layers', [])]
            if not inks:
                raise UserError('there is nothing to classify: draw something first')
            yield from classify(subject, subject.drawing(functools.reduce(ImageChops.lighter, inks)), threshold)

        @in_page
        def classify_file(name: str, path: str | None, invert: bool, threshold: float) -> Iterator[Views]:
            if path:
                subject = opened(name)
                yield from classify(subject, subject.upload(Path(path), invert), threshold)

        def look_at_ground(name: str, path: str) -> bool:
            subject = opened(name)
            return subject.frames is None and subject.mode == 'L' and has_bright_ground(Path(path))

        def move(shown: Any, step: float, threshold: float) -> Views:
            if shown is None:
                return {}
            name, x, answer = shown
            return views(opened(name), x, answer, min(int(step), answer.num_steps), threshold)

        outputs = [said, evidence, spikes, energy, step_slider, shown]
        sources = [examples, draw, upload]
        hidden: Any = dict(api_visibility='private')
        # one pass at a time: what watches a model would see those of others
        one: Any = dict(concurrency_limit=1, concurrency_id='model', show_progress='minimal')
        chosen: Any = dict(inputs=[model, lead], outputs=[*outputs, source, gallery, file, invert, *sources])
        page.load(choose, **chosen, **one, **hidden)
        model.input(choose, **chosen, **one, **hidden)
        turned = source.input(turn_to, source, sources, show_progress='hidden', **hidden)
        turned.then(None, js=TAKE_BRUSH, **hidden)
        gallery.select(pick, [model, lead], outputs, **one, **hidden)
        classify_sketch.click(classify_drawing, [model, sketch, lead], outputs, **one, **hidden)
        uploaded: Any = dict(inputs=[model, file, invert, lead], outputs=outputs)
        looked = file.upload(look_at_ground, [model, file], invert, **hidden)
        looked.then(classify_file, **uploaded, **one, api_name='classify')
        invert.input(classify_file, **uploaded, **one, **hidden)
        for slider in (step_slider, lead):
            slider.input(
                move, [shown, step_slider, lead], [evidence, spikes, energy],
                trigger_mode='always_last', show_progress='hidden', **hidden,
            )  # fmt: skip
    return page
