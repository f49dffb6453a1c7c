"""Publish a model on the Hugging Face Hub: weights, config, model card, results, training options, licence.

    python hub/push.py output/digits USER/NAME --dry-run output/hub     write the folder, look at it, edit the card
    python hub/push.py output/hub USER/NAME                             upload it
    python hub/push.py output/digits USER/NAME --dtype float16          or at once

Weights go as safetensors. What was written is loaded again before it is uploaded, and downloaded again afterwards:
weights and logits must be the same in every bit. Files that the repository has already are not sent again, so that the
same command goes on after a failure, and does nothing when there is nothing to do. Other files in the repository stay.

Log in with `hf auth login`, or set HF_TOKEN. No token is written or printed.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from card import find_results, make_card
from model_folder import (
    add_folder_options,
    apply_options,
    folder_options,
    open_source,
    read_report,
    write_folder,
)

from timm_snn.hub.push import advice_on, check_repo, check_uploaded, upload
from timm_snn.progress import waiting
from timm_snn.training.console import give
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.options import ArgumentParser


def upload_checked(folder: Path, repo: str, name: str, model: Any, private: bool) -> None:
    """Make the repository if there is none, commit what differs, and check that users get this model from it."""
    again = 'run the same command again, which goes on from there'
    try:
        with one_line_errors(f'upload to {repo!r}', again):
            commit, has_changed = upload(folder, repo, f'Add {name}', private=private)
    except UserError as error:
        raise UserError(str(error).replace(again, advice_on(error.__cause__) or again)) from error.__cause__
    with one_line_errors(
        f'get the model back from {repo!r}', f'what is there as {commit.oid} is not what was uploaded, or not whole'
    ):
        check_uploaded(repo, commit, model)
    done = 'uploaded' if has_changed else 'has all of it already'
    give(
        {'repo': repo, 'commit': commit.oid, 'url': commit.commit_url, 'has_changed': has_changed},
        f'{done}: {commit.commit_url}; downloaded again, weights and logits are the same',
    )


@script(kept='a commit is on the Hub as a whole or not at all')
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/push.py', __doc__)
    add = parser.add_argument
    add('source', help='OUTPUT of recipes/train.py, a checkpoint in it, or a model folder')
    add('repo', metavar='USER/NAME', help='the repository, made if there is none')
    add('--dry-run', type=Path, metavar='FOLDER', help='write what would be uploaded there, and upload nothing')
    add('--private', action='store_true', help='if the repository is made')
    add_folder_options(parser)
    args = parser.parse_args(argv)
    with one_line_errors('publish it', 'use the name of a repository, with a token that may write there'):
        check_repo(args.repo, needs_token=not args.dry_run)
    source = open_source(args.source)
    if not source.has_weights:
        raise UserError(f'{args.source} is the name of a model: expected a training run or a model folder')
    options = folder_options(args)
    apply_options(source, options)
    report = read_report(options.energy, source.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dry_run or Path(temporary) / source.name
        card = make_card(source, args.repo, report, options.dtype)
        with waiting(f'writing {folder}'):
            model = write_folder(source, folder, card, find_results(source)[1], options)
        if args.dry_run:
            names = sorted(path.name for path in folder.iterdir())
            give({'folder': folder, 'files': names}, f'written: {", ".join(names)} in {folder}; nothing uploaded')
        else:
            upload_checked(folder, args.repo, source.name, model, args.private)


if __name__ == '__main__':
    main()
