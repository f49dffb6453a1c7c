"""Upload a model to the Hugging Face Hub, so that what is downloaded from there is the same in every bit."""

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from huggingface_hub import CommitInfo, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..files import write_whole_text
from ..models.base import SpikingTransformer
from ..models.builder import argument_names
from ..models.pretrained import FILENAME, modules_of, reworded, save_for_hf
from ..models.quantized import QuantizedModel
from ..profiling import Report
from ..progress import waiting
from ..version import __version__
from ..wrappers import unwrapped
from .card import Source, fixed_input, render_card

__all__ = [
    *('advice_on', 'check_repo', 'check_report', 'check_same', 'check_uploaded'),
    *('pinned_args', 'push_to_hub', 'upload'),
]

# What to do about an answer of the Hub. Anything else may pass, and nothing is sent twice.
_ADVICE = {
    401: 'log in with `hf auth login`, or set HF_TOKEN to a token that is valid',
    403: 'use a token that may write there',
}


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    label_names: Sequence[str] | None = None,
    license: str | None = None,
    report: Report | None = None,
    card: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload weights, config.json and a model card; returns the URL of the commit, or of the pull request.

    The model may be in a wrapper, on any device and in either mode, and stays as it is. Weights go in float32. Before
    anything is sent, what was written is loaded again, and afterwards it is downloaded again: weights, and logits of a
    fixed input, must be the same in every bit. What the repository has already is not sent twice, other files in it
    stay, and its README.md is replaced.

    Args:
        repo_id: USER/NAME, which is made if there is none.
        label_names: Names of the classes; by default the model's, if it knows them.
        license: Of the weights, as the Hub writes it; by default the model's, which is apache-2.0 for those of ours.
        report: What `timm_snn.profile` counted on real data, for the card and as energy.json.
        card: README.md, instead of one that says what is known.
        private: If the repository is made; by default as the account says.
        token: By default the one of `hf auth login` or HF_TOKEN.
        revision: A branch, which is made if there is none.
        create_pr: Open a pull request, as into a repository of others.

    Raises:
        HFValidationError (a ValueError): If `repo_id` is no USER/NAME.
        LocalTokenNotFoundError (an OSError): If nobody is logged in.
        ValueError: For a model of another library, layers that nobody else could load, a report about another model,
            and a model that does not come back the same.
        HfHubHTTPError (an OSError): What the Hub refuses, with what to do.
    """
    check_repo(repo_id, token)
    own = _for_upload(model, label_names, license)
    if report is not None:
        check_report(report, own)
    source = Source(own)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cfg = own.pretrained_cfg
        save_for_hf(own, folder, {'label_names': cfg.get('label_names')}, pinned_args(own))
        write_whole_text(folder / 'README.md', render_card(source, repo_id, report) if card is None else card)
        if report is not None:
            write_whole_text(folder / 'energy.json', report.to_json())
        check_same(_load(folder), own, 'the folder that was written')
        try:
            commit, _ = upload(
                folder,
                repo_id,
                commit_message or f'Add {source.name}',
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )
        except HfHubHTTPError as error:
            line = ' '.join(str(error).split())
            advice = advice_on(error) or 'call it again, which goes on from there'
            raise reworded(error, f'cannot upload to {repo_id!r}: {line}; {advice}') from error
    check_uploaded(repo_id, commit, own, token)
    return commit.pr_url or commit.commit_url


def check_repo(repo_id: str, token: str | None = None, needs_token: bool = True) -> None:
    """Raises: HFValidationError if it is no USER/NAME, LocalTokenNotFoundError if there is no token."""
    validate_repo_id(repo_id)
    if '/' not in repo_id:
        raise HFValidationError(f'expected USER/NAME, got {repo_id!r}')
    if needs_token and not (token or get_token()):
        raise LocalTokenNotFoundError(
            f'cannot upload to {repo_id!r}: nobody is logged in; run `hf auth login` or set HF_TOKEN'
        )


def check_report(report: Report, model: Any) -> None:
    """Raises: ValueError if it is about another model."""
    found = (report.parameters, report.num_steps, report.input_shape[-3])
    own = (sum(p.numel() for p in model.parameters()), getattr(model, 'num_steps', 1), model.in_chans)
    if found != own:
        raise ValueError(
            f'the report is about another model, of {found[0]:,} parameters, T = {found[1]} and {found[2]} channels '
            f'instead of {own[0]:,}, {own[1]} and {own[2]}'
        )


def _for_upload(model: nn.Module, label_names: Sequence[str] | None, license: str | None) -> Any:
    """A copy in eval mode and float32 on the CPU, with the names of its classes and its licence."""
    inner = unwrapped(model)
    if isinstance(inner, QuantizedModel):
        raise ValueError('a quantized model is a file of its own: save it with model.save(FOLDER), then `hf upload`')
    is_ours = isinstance(inner, SpikingTransformer) or type(inner).__module__.startswith('timm_snn.')
    if not is_ours or not hasattr(inner, 'pretrained_cfg'):
        raise ValueError(
            f'{type(inner).__name__} is no model that timm.create_model makes from this package; '
            'timm.models.push_to_hf_hub publishes those of timm'
        )
    if '__main__' in modules_of(inner):
        raise ValueError(
            'the model has layers that a script or notebook defines, which nobody else could load: move them to a '
            'module that can be installed, import it here, and make the model anew'
        )
    own: Any = copy.deepcopy(inner).cpu().float().eval()
    cfg = own.pretrained_cfg = dict(own.pretrained_cfg)
    if label_names is not None and len(label_names) != own.num_classes:
        raise ValueError(f'expected {own.num_classes} label_names, one for each class, got {len(label_names)}')
    if label_names is not None or len(cfg.get('label_names') or ()) != own.num_classes:
        cfg['label_names'] = None if label_names is None else [str(name) for name in label_names]
        cfg['label_descriptions'] = None
    if license is not None:
        cfg['license'] = license
    return own


def pinned_args(model: Any) -> dict[str, Any]:
    """Steps, channels and thresholds, which no weight shows, even where they are the defaults of today.

    A neuron without a `v_threshold`, as ReLU or another library's, has nothing to pin.
    """
    args = {}
    for name in sorted(argument_names(type(model))):
        if name in ('in_chans', 'num_steps'):
            args[name] = getattr(model, name)
        elif name.endswith('_v_threshold'):
            neuron = name.replace('_v_threshold', '_lif')
            named = (module for key, module in model.named_modules() if key.rpartition('.')[2] == neuron)
            found = {module.v_threshold for module in named if hasattr(module, 'v_threshold')}
            if len(found) == 1:
                args[name] = found.pop()
    return args


def upload(
    folder: Path,
    repo_id: str,
    message: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> tuple[CommitInfo, bool]:
    """Make the repository if there is none, and commit what differs; the commit, and whether anything changed."""
    api = HfApi(token=token, library_name='timm_snn', library_version=__version__)
    with waiting(f'uploading to {repo_id}'):
        if not create_pr or not api.repo_exists(repo_id):  # others' need not be made, and could not be
            api.create_repo(repo_id, private=private, exist_ok=True)
        if revision and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        before = api.model_info(repo_id, revision=revision).sha
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr
        )
    return commit, commit.oid != before


_LOADED = (FILENAME, 'config.json')


def check_uploaded(repo_id: str, commit: CommitInfo, model: Any, token: str | None = None) -> None:
    """Download the model of a commit. Raises: ValueError if it is another one."""
    api = HfApi(token=token)
    with TemporaryDirectory() as cache, waiting(f'downloading from {repo_id} again'):
        files = [api.hf_hub_download(repo_id, name, revision=commit.oid, cache_dir=cache) for name in _LOADED]
        found = _load(Path(files[0]).parent)
    check_same(found, model, repr(repo_id))


def _load(folder: Path) -> Any:
    return timm.create_model(f'local-dir:{folder}', pretrained=True)


@torch.inference_mode()
def check_same(model: Any, expected: Any, where: str) -> None:
    """Raises: ValueError if the model, which came from `where`, has other weights or logits, in any bit."""
    weights, own = expected.state_dict(), model.state_dict()
    other = [key for key in weights if key not in own or not torch.equal(own[key], weights[key])]
    if other or len(own) != len(weights):
        raise ValueError(
            f'{where} has other weights than the model it was written from (first: {(other or [*own])[0]})'
        )
    x = fixed_input(expected)
    if not torch.equal(model.eval()(x), expected.eval()(x)):
        raise ValueError(f'the model from {where} answers differently than the one that was written')


def advice_on(error: BaseException | None) -> str:
    """What to do about an answer of the Hub, '' if only to try again."""
    return _ADVICE.get(getattr(getattr(error, 'response', None), 'status_code', 0), '')
