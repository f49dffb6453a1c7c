"""Train a spiking vision transformer: one Accelerate loop, to be read from top to bottom.

    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml
    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml --epochs 5 --lr 1e-3

A config is YAML with the names of the options below, which are those of timm's train.py; an option on the command line
wins over the config. In `--output` a run leaves: checkpoints/ (for --resume), summary.csv, curve.png, and model/, a
folder in the Hub's format for timm.create_model('local-dir:OUTPUT/model', pretrained=True).

The accuracy reported is that of the last epoch on the validation split, on every sample once; no epoch is picked by it.
"""

import argparse
import csv
import difflib
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import matplotlib
import timm
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from PIL import Image
from timm.data import Mixup, create_dataset, create_loader, create_transform, resolve_input_data_config
from timm.loss import create_classification_loss
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ParseKwargs
from torch.utils.data import Dataset
from tqdm import tqdm

import timm_snn  # noqa: F401  registers the models

matplotlib.use('Agg')
from matplotlib import pyplot as plt


def parse_args() -> argparse.Namespace:
    flag = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', '-c', type=Path, help='YAML file with any of the options below')
    add = parser.add_argument_group('model').add_argument
    add('--model', default='msvit_4_96', help='any timm model, with or without a tag')
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='name=value ..., e.g. num_steps=6 attn=ssa')
    add('--pretrained', action=flag, default=False, help='start from the pretrained weights of the model')
    add('--num-classes', type=int, help="default: the model's")
    add('--in-chans', type=int, help="default: the model's")
    add('--drop-path', type=float, help='stochastic depth of the last block')
    add = parser.add_argument_group('data').add_argument
    add(
        '--dataset',
        default='digits',
        help="'digits' (part of scikit-learn) or as timm says: torch/..., hfds/..., ''",
    )
    add('--data-dir', type=Path, help='root folder of the data set')
    add('--dataset-download', action=flag, default=False, help='let torch/... data sets download themselves')
    add('--train-split', default='train')
    add('--val-split', default='validation')
    add('--input-key', help='column of the images of an hfds/ data set')
    add('--target-key', help='column of its labels')
    add('--img-size', type=int, help='image size; default: that of the model')
    add('--mean', type=float, nargs='+', help='of the normalisation; default: that of the model')
    add('--std', type=float, nargs='+')
    add('--crop-pct', type=float)
    add('--interpolation')
    add('--batch-size', '-b', type=int, default=64, help='of one process')
    add('--workers', '-j', type=int, default=2, help='processes that load data; 0 loads in the main one')
    add = parser.add_argument_group('augmentation and regularisation').add_argument
    add('--scale', type=float, nargs=2, default=(0.08, 1.0), help='area of random resized crops')
    add('--ratio', type=float, nargs=2, default=(3 / 4, 4 / 3), help='and their aspect ratio')
    add('--hflip', type=float, default=0.5)
    add('--color-jitter', type=float, default=0.4)
    add('--aa', help="auto-augment policy, e.g. 'rand-m9-mstd0.5-inc1'")
    add('--reprob', type=float, default=0.0, help='random erasing')
    add('--remode', default='pixel')
    add('--mixup', type=float, default=0.0)
    add('--cutmix', type=float, default=0.0)
    add('--smoothing', type=float, default=0.1, help='label smoothing')
    add = parser.add_argument_group('optimisation').add_argument
    add('--epochs', type=int, default=100)
    add('--opt', default='adamw')
    add('--lr', type=float, default=1e-3)
    add('--weight-decay', type=float, default=0.05, help='not applied to 1-D parameters')
    add('--clip-grad', type=float, help='largest norm of the gradient')
    add('--sched', default='cosine', help='stepped every update')
    add('--warmup-epochs', type=int, default=5)
    add('--warmup-lr', type=float, default=1e-6)
    add('--min-lr', type=float, default=1e-6)
    add = parser.add_argument_group('run').add_argument
    add('--output', type=Path, default=Path('output/train'))
    add('--resume', help="'auto' for the newest checkpoint of --output, if there is one, or a checkpoint folder")
    add('--overwrite', action=flag, default=False, help='start anew although --output holds checkpoints')
    add('--seed', type=int, default=42)
    add('--num-threads', type=int, help='on a CPU; default: all cores, shared by the processes')

    config = parser.parse_known_args()[0].config
    if config is not None:
        parser.set_defaults(**read_config(config, [action.dest for action in parser._actions]))
    return parser.parse_args()


def read_config(path: Path, known: list[str]) -> dict[str, Any]:
    """A config's keys and values; exits with one line on a file that is missing, no mapping, or has unknown keys."""
    if not path.is_file():
        raise SystemExit(f'error: config {path} does not exist; see recipes/configs/')
    config = yaml.safe_load(path.read_text())
    if not isinstance(config, dict):
        raise SystemExit(f'error: config {path} is not a YAML mapping of option names to values')
    for key in config:
        if key not in known or key in ('config', 'help'):
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f'did you mean {close[0]!r}?' if close else 'see recipes/train.py --help'
            raise SystemExit(f'error: unknown key {key!r} in {path}: {hint}')
    return config


class Digits(Dataset):
    """scikit-learn's bundled 1,797 handwritten digits, 8x8; 360 of them, a fixed fifth per class, are for validation.

    The split does not depend on the run's seed, so that accuracies of several seeds are of the same samples.
    """

    classes = tuple('0123456789')

    def __init__(self, train: bool) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        halves = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
        self.images, self.labels = (halves[0], halves[2]) if train else (halves[1], halves[3])
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = (self.images[index].reshape(8, 8) * (255 / 16)).astype('uint8')  # values are 0 to 16
        image = Image.fromarray(pixels)
        return self.transform(image) if self.transform else image, int(self.labels[index])


def open_dataset(args: argparse.Namespace, train: bool, in_chans: int) -> Any:
    """The training or validation data by its name; exits with one line if it is not there."""
    split = args.train_split if train else args.val_split
    if args.dataset == 'digits':
        return Digits(train)
    is_folder = args.dataset.removeprefix('torch/') in ('', 'folder', 'image_folder')
    if not is_folder and '/' not in args.dataset:
        raise SystemExit(f"error: unknown data set {args.dataset!r}: 'digits', torch/..., hfds/..., or '' for a folder")
    if is_folder and (args.data_dir is None or not args.data_dir.is_dir()):
        raise SystemExit(f'error: data folder {args.data_dir} does not exist; --data-dir names a folder with {split}/')
    try:
        return create_dataset(
            args.dataset,
            root=args.data_dir,
            split=split,
            is_training=train,
            download=args.dataset_download,
            batch_size=args.batch_size,
            input_img_mode='L' if in_chans == 1 else 'RGB',
            input_key=args.input_key,
            target_key=args.target_key,
        )
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SystemExit(
            f'error: cannot open split {split!r} of data set {args.dataset!r} in {args.data_dir}: {reason}; check '
            '--dataset, --data-dir and the splits, or let torch/ data sets come with --dataset-download'
        ) from error


def class_names(dataset: Any) -> list[str] | None:
    """Label names, where the data set knows them: torchvision's and our `classes`, or timm's readers."""
    if hasattr(dataset, 'classes'):
        return list(dataset.classes)
    mapping = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None)
    return sorted(mapping, key=mapping.get) if mapping else None


class Progress:
    """How far the run is; saved with every checkpoint."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []  # a row per finished epoch

    def state_dict(self) -> dict[str, Any]:
        return {'history': self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state['history']


@torch.inference_mode()
def evaluate(model: torch.nn.Module, loader: Any, accelerator: Accelerator) -> dict[str, float]:
    """Mean loss and top-1 accuracy in percent over every sample once, however many processes share them."""
    model.eval()
    losses, hits = [], []
    for images, labels in loader:
        logits = model(images).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction='none')
        loss, hit = accelerator.gather_for_metrics((loss, logits.argmax(1) == labels))
        losses.append(loss.cpu())
        hits.append(hit.cpu())
    return {'loss': torch.cat(losses).mean().item(), 'top1': 100 * torch.cat(hits).double().mean().item()}


def write_summary(history: list[dict[str, float]], output: Path) -> None:
    """summary.csv and curve.png of the epochs so far."""
    with open(output / 'summary.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout='constrained')
    epochs = [row['epoch'] + 1 for row in history]
    for axes, metric, label in ((left, 'loss', 'loss'), (right, 'top1', 'top-1 accuracy (%)')):
        axes.plot(epochs, [row[f'train_{metric}'] for row in history], label='training')
        axes.plot(epochs, [row[f'eval_{metric}'] for row in history], label='validation')
        axes.set(xlabel='epoch', ylabel=label)
        axes.legend()
    figure.savefig(output / 'curve.png', dpi=120)
    plt.close(figure)


def predict_one(folder: Path, dataset: Any) -> str:
    """What the saved model, loaded as a user would, says of the first validation image."""
    model: Any = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    dataset.transform = create_transform(**resolve_input_data_config(model))
    image, label = dataset[0]
    with torch.inference_mode():
        probabilities = model(image.unsqueeze(0)).softmax(1)[0]
    names = model.pretrained_cfg.get('label_names') or class_names(dataset) or range(model.num_classes)
    guess = int(probabilities.argmax())
    return f'validation image 0 is {names[guess]!r} with {probabilities[guess]:.1%}, its label is {names[label]!r}'


def main() -> None:
    args = parse_args()
    logging.getLogger('accelerate.accelerator').setLevel(logging.ERROR)  # it warns of every checkpoint it rotates out
    project = ProjectConfiguration(str(args.output), automatic_checkpoint_naming=True, total_limit=2)
    accelerator = Accelerator(
        project_config=project,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )
    if accelerator.device.type == 'cpu':
        # accelerate launch gives every process one thread unless it is told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        torch.set_num_threads(args.num_threads or max(1, cores // accelerator.num_processes))
    set_seed(args.seed, device_specific=True)

    try:
        model: Any = timm.create_model(
            args.model,
            pretrained=args.pretrained,
            num_classes=args.num_classes,
            in_chans=args.in_chans,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise SystemExit(f'error: cannot create model {args.model!r}: {error}') from error
    data_config = resolve_input_data_config(model, args={k: v for k, v in vars(args).items() if v is not None})

    with accelerator.main_process_first():  # one process downloads
        train_set = open_dataset(args, train=True, in_chans=model.in_chans)
        val_set = open_dataset(args, train=False, in_chans=model.in_chans)
    names = class_names(train_set)
    if names and len(names) != model.num_classes:
        raise SystemExit(
            f'error: data set {args.dataset!r} has {len(names)} classes and the model {model.num_classes}: '
            f'pass --num-classes {len(names)}'
        )
    loader_args = dict(
        input_size=data_config['input_size'],
        batch_size=args.batch_size,
        mean=data_config['mean'],
        std=data_config['std'],
        interpolation=data_config['interpolation'],
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        use_prefetcher=False,  # moves batches to a GPU by itself; Accelerate does that here
    )
    train_loader = create_loader(
        train_set,
        is_training=True,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        color_jitter=args.color_jitter,
        auto_augment=args.aa,
        re_prob=args.reprob,
        re_mode=args.remode,
        **loader_args,
    )
    val_loader = create_loader(val_set, crop_pct=data_config['crop_pct'], **loader_args)
    mixup = None
    if args.mixup > 0 or args.cutmix > 0:
        mixup = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=model.num_classes)
    criterion = create_classification_loss(smoothing=args.smoothing, soft_targets=mixup is not None)

    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
    updates_per_epoch = len(train_loader)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.warmup_lr,
        min_lr=args.min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    load_checkpoint(accelerator, args)
    first_epoch = len(progress.history)
    project.iteration = first_epoch

    say = accelerator.print
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f'{args.model}: {parameters:,} parameters, input {data_config["input_size"]}; {args.dataset}: {len(train_set)} '
        f'training and {len(val_set)} validation images; '
        f'effective batch {args.batch_size * accelerator.num_processes}, lr {args.lr:g}, '
        f'epochs {first_epoch + 1} to {args.epochs}, seed {args.seed}, {accelerator.device}'
    )
    start = time.perf_counter()
    for epoch in range(first_epoch, args.epochs):
        model.train()
        train_loader.set_epoch(epoch)
        loss_sum = hits = seen = torch.zeros((), device=accelerator.device)
        epoch_start = time.perf_counter()
        title = f'epoch {epoch + 1}/{args.epochs}'
        bar = tqdm(train_loader, title, leave=False, disable=not accelerator.is_main_process)
        for step, (images, labels) in enumerate(bar):
            scheduler.step_update(epoch * updates_per_epoch + step)
            if mixup:
                images, labels = mixup(images, labels)
            logits = model(images)
            loss = criterion(logits.float(), labels)
            accelerator.backward(loss)
            if args.clip_grad is not None:
                accelerator.clip_grad_norm_(model.parameters(), args.clip_grad)
            optimizer.step()
            optimizer.zero_grad()

            target = labels.argmax(1) if mixup else labels
            loss_sum = loss_sum + loss.detach() * len(images)
            hits = hits + (logits.argmax(1) == target).sum()
            seen = seen + len(images)
            if step % 10 == 0:  # reading a value waits for the device
                speed = seen.item() * accelerator.num_processes / (time.perf_counter() - epoch_start)
                bar.set_postfix(
                    loss=f'{loss.item():.3f}', top1=f'{100 * (hits / seen).item():.1f}', images_per_s=f'{speed:.0f}'
                )
        loss_sum, hits, seen = (accelerator.reduce(value) for value in (loss_sum, hits, seen))
        images_per_s = seen.item() / (time.perf_counter() - epoch_start)

        metrics = evaluate(model, val_loader, accelerator)
        progress.history.append(
            {
                'epoch': epoch,
                'lr': optimizer.param_groups[0]['lr'],
                'train_loss': (loss_sum / seen).item(),
                'train_top1': 100 * (hits / seen).item(),
                'eval_loss': metrics['loss'],
                'eval_top1': metrics['top1'],
                'images_per_s': images_per_s,
            }
        )
        accelerator.save_state()
        if accelerator.is_main_process:
            write_summary(progress.history, args.output)
        say(
            f'{title}: training loss {progress.history[-1]["train_loss"]:.3f}, validation loss '
            f'{metrics["loss"]:.3f}, top-1 {metrics["top1"]:.2f}, {images_per_s:.0f} images/s'
        )

    if accelerator.is_main_process:
        folder = args.output / 'model'
        save_for_hf(
            accelerator.unwrap_model(model, keep_torch_compile=False),
            folder,
            model_config=dict(label_names=names) if names else None,
            data_config=data_config,
            safe_serialization=True,
        )
        say(f'{time.perf_counter() - start:.0f} s of training; saved in {args.output}')
        say(f'prediction by {folder}: {predict_one(folder, val_set)}')
    say(f'top-1: {progress.history[-1]["eval_top1"]:.2f}')
    accelerator.end_training()


def load_checkpoint(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Go on from the checkpoint that --resume names; exits with one line rather than mixing two runs in a folder."""
    checkpoints = args.output / 'checkpoints'
    found = checkpoints.is_dir() and any(checkpoints.iterdir())
    if args.resume == 'auto':
        if found:
            accelerator.load_state()  # the newest
    elif args.resume:
        if not Path(args.resume).is_dir():
            raise SystemExit(f'error: checkpoint {args.resume} does not exist; --resume auto takes the newest, if any')
        accelerator.load_state(args.resume)
    elif found and not args.overwrite:
        raise SystemExit(f'error: {args.output} holds another run; pass --resume auto, --overwrite or another --output')
    elif found and accelerator.is_main_process:
        shutil.rmtree(checkpoints)


if __name__ == '__main__':
    main()
