"""Make or update the collection of our models on the Hugging Face Hub, as hub/collection.yaml has it.

    python hub/collection.py --dry-run      say what would be in it
    python hub/collection.py                make it, or add what is new and mend texts
    python hub/collection.py --write        renew the items of the file from the registry

A collection holds repositories that exist, so models that nobody has uploaded yet are passed over and counted; the same
command adds them later. Items that others put there stay. Log in with `hf auth login`, or set HF_TOKEN, first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import yaml
from huggingface_hub import HfApi, get_token

import timm_snn
from timm_snn.files import write_whole_text
from timm_snn.models.pretrained import is_ours, weights_status
from timm_snn.training.console import give
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.options import ArgumentParser

FILE = Path(__file__).with_suffix('.yaml')
LONGEST = {'title': 59, 'description': 150}  # of characters, which the Hub takes
HEADER = '# What hub/collection.py puts on the Hub. It writes the items itself, with --write, from the registry.\n'


def items() -> list[dict[str, str]]:
    """The repository of every tag, those with weights first."""
    names = [name for name in timm.list_models(include_tags=True) if '.' in name and is_ours(name)]
    names.sort(key=lambda name: weights_status(name) == 'not yet trained')
    cfgs: list[Any] = [timm.get_pretrained_cfg(name) for name in names]
    return [
        {'id': cfg.hf_hub_id, 'note': f'{cfg.num_classes} classes; weights: {weights_status(name)}'}
        for name, cfg in zip(names, cfgs, strict=True)
    ]


def read_collection(path: Path = FILE) -> dict[str, Any]:
    with one_line_errors(f'read {path}', 'expected title, namespace, description and items with id and note'):
        found = yaml.safe_load(path.read_text(encoding='utf-8'))
        for key, longest in LONGEST.items():
            if len(found[key]) > longest:
                raise ValueError(f'{key} has {len(found[key])} characters, the Hub takes {longest}')
        if wrong := [item for item in found['items'] if set(item) != {'id', 'note'}]:
            raise ValueError(f'expected id and note in each item, got {wrong[0]}')
        if 'namespace' not in found:
            raise ValueError('it has no namespace')
        return found


def update(wanted: dict[str, Any], private: bool) -> tuple[str, int, list[str]]:
    """Its address, how many items are new, and the repositories that do not exist."""
    api = HfApi(library_name='timm_snn', library_version=timm_snn.__version__)
    title, description, owner = (wanted[key] for key in ('title', 'description', 'namespace'))
    slug = next((c.slug for c in api.list_collections(owner=owner) if c.title == title), None)
    if slug is None:
        found = api.create_collection(title, namespace=owner, description=description, private=private)
    else:
        found = api.get_collection(slug)  # a listing has the first items only
        if found.description != description:
            api.update_collection_metadata(slug, description=description)
    present = {item.item_id: item for item in found.items}
    served = {
        model.id
        for name in {item['id'].split('/')[0] for item in wanted['items']}
        for model in api.list_models(author=name)
    }
    added, missing = 0, []
    for item in wanted['items']:
        if item['id'] in present:
            if present[item['id']].note != item['note']:
                api.update_collection_item(found.slug, present[item['id']].item_object_id, note=item['note'])
        elif item['id'] in served:
            api.add_collection_item(found.slug, item['id'], 'model', note=item['note'], exists_ok=True)
            added += 1
        else:
            missing.append(item['id'])
    return found.url, added, missing


@script(kept='what was added stays in the collection')
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('hub/collection.py', __doc__)
    add = parser.add_argument
    add('--file', type=Path, default=FILE, help='default: hub/collection.yaml')
    add('--dry-run', action='store_true', help='ask the Hub nothing')
    add('--private', action='store_true', help='if the collection is made')
    add('--write', action='store_true', help='renew the items of the file')
    args = parser.parse_args(argv)
    wanted = read_collection(args.file)
    if args.write:
        wanted['items'] = items()
        write_whole_text(args.file, HEADER + yaml.safe_dump(wanted, sort_keys=False, width=120))
        give({'file': args.file, 'items': len(wanted['items'])})
        return
    if args.dry_run:
        give(wanted, f'{wanted["title"]}: ' + ', '.join(item['id'] for item in wanted['items']))
        return
    if not get_token():
        raise UserError('cannot make a collection: nobody is logged in; run `hf auth login` or set HF_TOKEN')
    with one_line_errors(f'update the collection {wanted["title"]!r}', 'run the same command again, which goes on'):
        url, added, missing = update(wanted, args.private)
    give(
        {'url': url, 'added': added, 'missing': missing},
        f'{url}: {added} items added, {len(missing)} repositories do not exist yet',
    )


if __name__ == '__main__':
    main()
