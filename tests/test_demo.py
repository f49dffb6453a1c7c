"""The page of `timm-snn demo`: what it says of an input, and a visit in a browser."""

import socket
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import RepoCard
from PIL import Image, ImageDraw

import timm_snn
from timm_snn.data.event_digits import record_digit, split_digits
from timm_snn.demo import answers, app, html, inputs
from timm_snn.training.errors import UserError

DIGITS, FASHION, EVENTS, NMNIST = (
    f'msvit_4_96.{data}' for data in ('digits', 'fashion_mnist', 'event_digits', 'nmnist_small')
)
ROOT = Path(__file__).parents[1]
CHROMIUM = which('chromium')

needs_gradio = pytest.mark.skipif(find_spec('gradio') is None, reason='gradio is not installed')


@pytest.fixture(scope='module')
def digits() -> inputs.Subject:
    return inputs.open_subject(DIGITS)


@pytest.fixture(scope='module')
def events() -> inputs.Subject:
    return inputs.open_subject(EVENTS)


@pytest.fixture(scope='module')
def answer(digits) -> answers.Answer:
    return answers.watch(digits.model, digits.example(3))


def test_all_models_of_the_package_are_shown():
    assert set(inputs.shipped()) == {DIGITS, FASHION, EVENTS, NMNIST, 'msvit_3_192.cifar10'}


@pytest.mark.parametrize('name', [DIGITS, EVENTS, FASHION])
def test_most_examples_are_classified_as_they_are_labelled(name):
    subject = inputs.open_subject(name)
    frames = torch.stack([subject.example(number) for number in range(len(subject.examples()))])
    with torch.no_grad():
        guesses = subject.model(frames).argmax(1).tolist()
    labels = [label for _, label in subject.examples()]
    assert len(labels) == 10 and sum(subject.names[g] == label for g, label in zip(guesses, labels, strict=True)) >= 8


def test_an_answer_is_that_of_the_model_after_each_number_of_steps(digits, answer):
    model, x = timm.create_model(DIGITS, pretrained=True).eval(), digits.example(3).unsqueeze(0)
    for step in (1, 4):
        model.num_steps = step
        with torch.no_grad():
            torch.testing.assert_close(answer.probabilities[step - 1], model(x)[0].softmax(0))
        report = timm_snn.profile(model, x, progress=False)
        assert answer.reports[step].energy['C'].mj == report.energy['C'].mj
    assert digits.model.num_steps == 4
    assert digits.names[answer.guess(4)] == '3'


def test_maps_are_the_shares_of_neurons_that_fire_at_a_place(digits, answer):
    with torch.no_grad(), timm_snn.record(digits.model) as recorded:
        digits.model(digits.example(3).unsqueeze(0))
    stem = answer.stages[0]
    fired = recorded.spikes['stem.units.0.lif'][:, 0]
    torch.testing.assert_close(stem.rates, fired.mean(1))
    assert stem.name == 'stem' and stem.neurons == fired[0].numel()
    assert [stage.name for stage in answer.stages] == ['stem', 'stage 0', 'stage 1', 'stage 2']


def test_smaller_maps_of_a_stage_are_enlarged_and_attention_is_left_out():
    small, large = torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 3, 2, 2)
    small[:] = 1
    large[0, 0, :, 0, 0] = 1
    spikes = {'stages.1.a.lif': small, 'stages.1.b.lif': large, 'stages.1.attn.attn_lif': torch.ones(1, 1, 1, 9, 9)}
    (stage,) = answers.stages_of(spikes)
    assert stage.name == 'stage 1' and stage.neurons == 13
    assert stage.rates[0].tolist() == [[1.0, 0.25], [0.25, 0.25]]


def made_up(*probabilities: list[float]) -> answers.Answer:
    """An answer with these probabilities, that can stop after every step."""
    return answers.Answer(torch.tensor(probabilities), [], dict.fromkeys(range(1, len(probabilities) + 1)))


def test_it_stops_at_the_first_step_with_enough_confidence():
    answer = made_up([0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.05, 0.9, 0.05])
    assert [answer.stop(threshold) for threshold in (0, 0.2, 0.6, 0.95)] == [1, 2, 3, 3]
    assert answer.confidence(2) == pytest.approx(0.5)
    assert answer.decided() == 2


def test_stopping_early_saves_what_the_reports_say(answer):
    saved = answer.saved(2)
    assert saved[2] == 1 - answer.reports[2].energy['C'].mj / answer.reports[4].energy['C'].mj
    assert all(0.3 < share < 0.7 for share in saved) and answer.saved(4) == [0, 0, 0]
    assert 'It stops after step 2 of 4' in html.tell_exit(answer, list('0123456789'), 2)


def test_another_class_at_the_early_exit_is_said(answer):
    early = answers.Answer(answer.probabilities.clone(), answer.stages, answer.reports)
    early.probabilities[1] = torch.eye(10)[7]
    assert '<b>the class differs</b>: 7 instead of 3' in html.tell_exit(early, list('0123456789'), 2)


def test_a_recording_that_plays_ends_with_the_answer_to_all_of_it(events):
    frames = events.example(5)
    played = list(answers.play(events.model, frames))
    torch.testing.assert_close(torch.stack(played), answers.watch(events.model, frames).probabilities)
    assert events.seen(frames, 2).size == (32, 32)


def test_a_drawn_digit_is_made_like_those_of_the_data(digits, events):
    canvas = Image.new('L', (280, 280))
    ImageDraw.Draw(canvas).line([(190, 40), (190, 240)], fill=200, width=34)
    x = digits.drawing(canvas)
    assert x.shape == (1, 32, 32) and int(x[0, 16].argmax()) in range(14, 18)
    assert digits.names[answers.watch(digits.model, x).guess(4)] == '1'
    assert events.drawing(canvas).shape == (4, 2, 32, 32)
    with pytest.raises(UserError, match='draw something first'):
        digits.drawing(Image.new('L', (280, 280)))


def test_files_are_read_or_refused_in_one_line(digits, events, tmp_path):
    picture, inverted, broken = (tmp_path / name for name in ('digit.png', 'paper.png', 'broken.png'))
    image = digits.examples()[4][0]
    image.save(picture)
    image.point(lambda value: 255 - value).save(inverted)
    broken.write_bytes(b'no picture')
    expected = digits.example(4)
    assert torch.equal(digits.upload(picture), expected) and torch.equal(digits.upload(inverted, True), expected)
    assert [inputs.has_bright_ground(file) for file in (picture, inverted, broken)] == [False, True, False]
    with pytest.raises(UserError, match=r'cannot read broken\.png as a picture') as refused:
        digits.upload(broken)
    assert str(tmp_path) not in str(refused.value)
    recorded = record_digit(split_digits(train=False)[0][0].reshape(8, 8), seed=0)
    columns = np.rec.fromarrays(list(recorded), names='t,x,y,p')
    np.save(tmp_path / 'digit.npy', np.asarray(columns))
    assert torch.equal(events.upload(tmp_path / 'digit.npy'), events.frames.frames(recorded))
    with pytest.raises(UserError, match='as a recording'):
        events.upload(broken)


def test_models_without_steps_are_refused():
    with pytest.raises(UserError, match='no time steps'):
        inputs.check_shown('resnet18', timm.create_model('resnet18'))


def test_names_of_strangers_are_escaped(answer):
    names = [f'<script>{i}' for i in range(10)]
    shown = html.tell(answer, names) + html.draw_evidence(answer.probabilities, names, 4, 2, 3)
    shown += html.tell_exit(answer, names, 1) + html.tell_mistake('<script>') + html.tell_so_far(names[0], 1, 2)
    assert '<script' not in shown and '&lt;script' in shown


def test_labels_do_not_cover_each_other():
    placed = html.spread([100.0, 99.0, 10.0, 100.0], 14, 100.0)
    assert placed[2] == 10 and sorted(placed) == [10, 72, 86, 100]


def test_pictures_show_the_step_that_is_asked_for(digits, answer):
    seen = digits.seen(digits.example(3), 1)
    first, last = (html.draw_spikes(answer, step, seen) for step in (1, 4))
    assert first.count('<figure>') == 5 and 'at step 1 of 4' in first and first != last
    assert 'src="data:' in first and 'http' not in first


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'timm-snn\[demo\]'"):
        app.main([])


def test_the_files_of_the_space_are_what_the_hub_takes():
    card = RepoCard.load(ROOT / 'demo' / 'README.md').data.to_dict()
    assert card['sdk'] == 'gradio' and (ROOT / 'demo' / card['app_file']).is_file()
    assert (ROOT / 'demo' / 'requirements.txt').read_text() == 'timm-snn[demo]\n'


@pytest.fixture(scope='module')
def served():
    """The address of the page, and what it asked of others while it was made: nothing."""
    if find_spec('gradio') is None:
        pytest.skip('gradio is not installed')
    from timm_snn.demo.page import LAUNCH, make_page

    asked = []
    connect = socket.socket.connect

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ('127.0.0.1', '::1', 'localhost'):
            asked.append(address)
            raise OSError('no network in this test')
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, 'connect', watched)
        page = make_page([DIGITS, EVENTS])
        _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH)
        yield address
        page.close(verbose=False)
    assert asked == []


@needs_gradio
def test_a_file_is_classified_through_the_api(served, digits, tmp_path):
    client = pytest.importorskip('gradio_client')
    digits.examples()[6][0].save(tmp_path / 'six.png')
    remote = client.Client(served, verbose=False)
    said, evidence, *_ = remote.predict(
        DIGITS, client.handle_file(tmp_path / 'six.png'), False, 0.5, api_name='/classify'
    )
    assert '<p class="class" id="class">6</p>' in said and '<svg' in evidence
    (tmp_path / 'six.png').write_bytes(b'broken')
    said, evidence, *_ = remote.predict(
        DIGITS, client.handle_file(tmp_path / 'six.png'), False, 0.5, api_name='/classify'
    )
    assert 'cannot read six.png as a picture' in said and evidence == ''


@needs_gradio
@pytest.mark.skipif(CHROMIUM is None, reason='there is no chromium')
@pytest.mark.parametrize('width', [1280, 390])
def test_a_visit_in_a_browser(served, digits, tmp_path, width):
    """Upload, see the class, move the sliders, make a mistake; nothing is asked of another server."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    digits.examples()[8][0].save(tmp_path / 'eight.png')
    (tmp_path / 'broken.png').write_bytes(b'broken')
    outside = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=width, height=844))
        page.set_default_timeout(30_000)
        expect = playwright.expect
        expect.set_options(timeout=30_000)
        page.on(
            'request', lambda r: outside.append(r.url) if not r.url.startswith((served, 'data:', 'blob:')) else None
        )
        page.goto(served)
        expect(page.locator('#class')).to_have_text('0')  # the first example, by itself
        page.get_by_label('Upload', exact=True).click()
        page.locator('#file input[type=file]').set_input_files(tmp_path / 'eight.png')
        expect(page.locator('#class')).to_have_text('8')
        page.locator('#step input[type=number]').fill('1')
        expect(page.locator('#spikes h3')).to_have_text('Spikes of every stage at step 1 of 4')
        page.locator('#threshold input[type=number]').fill('1')
        expect(page.locator('#exit')).to_contain_text('nothing is saved')
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        page.get_by_role('button', name='Clear').or_(page.get_by_label('Remove')).first.click()
        page.locator('#file input[type=file]').set_input_files(tmp_path / 'broken.png')
        expect(page.locator('#mistake')).to_contain_text('cannot read broken.png as a picture')
        browser.close()
    assert outside == []
