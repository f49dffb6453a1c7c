"""Train a spiking vision transformer: one Accelerate loop, to be read from top to bottom.

    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml
    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml --epochs 5 --lr 1e-3

A config is YAML with the names of the options below, which are those of timm's train.py; an option on the command line
wins over the config. In `--output` a run leaves: config.yaml with all its options, checkpoints/ (for --resume),
summary.csv, curve.png, and model/, a folder in the Hub's format for timm.create_model('local-dir:OUTPUT/model',
pretrained=True).

The accuracy reported is that of the last epoch on the validation split, on every sample once; no epoch is picked by it.
"""

import argparse
import csv
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
from accelerate.utils import DataLoaderConfiguration, set_seed
from data import class_names, open_datasets
from options import as_config, one_line_errors, parse_args
from timm.data import Mixup, create_loader, create_transform, resolve_input_data_config
from timm.loss import create_classification_loss
from timm.models import save_for_hf, split_model_name_tag
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from tqdm import tqdm

import timm_snn  # noqa: F401  registers the models

matplotlib.use('Agg')
from matplotlib import pyplot as plt


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


# What a run leaves in --output.
RUN = ('config.yaml', 'checkpoints', 'summary.csv', 'curve.png', 'model')
# Options of a run that may differ when it goes on; all others would be mixed with, or lose to, what was saved.
MAY_CHANGE = ('output', 'resume', 'overwrite', 'epochs', 'data_dir', 'dataset_download', 'workers', 'num_threads')


def prepare_output(args: argparse.Namespace, accelerator: Accelerator) -> Path | None:
    """Make --output and find the checkpoint to go on from; ends the program in one line rather than mix two runs."""
    with one_line_errors(f'write to --output {args.output}'):
        args.output.mkdir(parents=True, exist_ok=True)
    old_run = [path for name in RUN if (path := args.output / name).exists()]
    found = sorted((args.output / 'checkpoints').glob('epoch_*'))
    checkpoint = None
    if args.resume == 'auto':
        checkpoint = found[-1] if found else None
    elif args.resume:
        checkpoint = Path(args.resume)
        if not checkpoint.is_dir():
            raise SystemExit(f'error: checkpoint {checkpoint} does not exist; --resume auto takes the newest, if any')
        if found and not checkpoint.samefile(found[-1]):
            raise SystemExit(f'error: {args.output} holds other checkpoints; pass --resume auto or another --output')
    elif old_run and not args.overwrite:
        raise SystemExit(f'error: {args.output} holds another run; pass --resume auto, --overwrite or another --output')

    config = as_config(args)
    if checkpoint:
        with one_line_errors('read the options of that run', '--resume takes a folder in OUTPUT/checkpoints'):
            before = yaml.safe_load((checkpoint.parent.parent / 'config.yaml').read_text(encoding='utf-8'))
        changed = [key for key in config if key not in MAY_CHANGE and config[key] != before.get(key)]
        if changed:
            now = ', '.join(f'{key} {before.get(key)!r} to {config[key]!r}' for key in changed)
            raise SystemExit(f'error: a run goes on with the options it began with, these changed: {now}')
    accelerator.wait_for_everyone()  # until all processes have looked
    if accelerator.is_main_process:
        with one_line_errors(f'write to --output {args.output}'):
            for path in old_run if args.overwrite and not args.resume else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (args.output / 'config.yaml').write_text(yaml.safe_dump(config, sort_keys=False), encoding='utf-8')
    return checkpoint


def save_checkpoint(accelerator: Accelerator, folder: Path, epochs: int) -> None:
    """Keep the last two. Written under another name first, so that a run killed here leaves no torn checkpoint."""
    unfinished = folder / 'unfinished'
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.rename(folder / f'epoch_{epochs:04d}')
        for old in sorted(folder.glob('epoch_*'))[:-2]:
            shutil.rmtree(old)


def main() -> None:
    args = parse_args(__doc__ or '')
    accelerator = Accelerator(
        # The order of the images is that of the seed alone: the processes then share one order and take turns in it.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
        step_scheduler_with_optimizer=False,
    )
    if accelerator.gradient_accumulation_steps > 1:
        raise SystemExit(
            'error: gradient accumulation is not supported yet; launch without --gradient_accumulation_steps'
        )
    if accelerator.device.type == 'cpu':
        # accelerate launch gives every process one thread unless it is told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        torch.set_num_threads(args.num_threads or max(1, cores // accelerator.num_processes))
    set_seed(args.seed, device_specific=True)

    with one_line_errors(f'create model {args.model!r}'):
        model: Any = timm.create_model(
            args.model,
            pretrained=args.pretrained,
            num_classes=args.num_classes,
            in_chans=args.in_chans,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
        options = {k: v for k, v in vars(args).items() if v is not None}
        data_config = resolve_input_data_config(model, args=options)
    with accelerator.main_process_first():  # one process downloads
        train_set, val_set = open_datasets(args, data_config['input_size'][0], model.num_classes)
    names = class_names(train_set)
    loader_args = dict(
        input_size=data_config['input_size'],
        batch_size=args.batch_size,
        mean=data_config['mean'],
        std=data_config['std'],
        interpolation=data_config['interpolation'],
        num_workers=args.workers,
        persistent_workers=False,  # their random state would run on, and a resumed run could not repeat it
        use_prefetcher=False,  # moves batches to a GPU by itself; Accelerate does that here
    )
    with one_line_errors('set up the augmentation'):
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

    with one_line_errors('set up the optimizer'):
        optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    model, optimizer, train_loader, val_loader = accelerator.prepare(model, optimizer, train_loader, val_loader)
    updates_per_epoch = len(train_loader)
    if updates_per_epoch == 0:
        raise SystemExit(
            f'error: {len(train_set)} training images do not fill a batch of {args.batch_size} for each of '
            f'{accelerator.num_processes} processes: pass a smaller --batch-size'
        )
    with one_line_errors('set up the schedule'):
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
    checkpoint = prepare_output(args, accelerator)
    if checkpoint:
        with one_line_errors(f'read checkpoint {checkpoint}', 'remove it, and --resume auto takes the one before'):
            accelerator.load_state(str(checkpoint))
    first_epoch = len(progress.history)

    say = accelerator.print
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f'{args.model}: {parameters:,} parameters, input {data_config["input_size"]}; {args.dataset}: {len(train_set)} '
        f'training and {len(val_set)} validation images; '
        f'effective batch {args.batch_size * accelerator.num_processes}, lr {args.lr:g}, '
        f'epochs {first_epoch + 1} to {args.epochs}, seed {args.seed}, {accelerator.device}'
        + (' (nothing left to train)' if first_epoch >= args.epochs else '')
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
        save_checkpoint(accelerator, args.output / 'checkpoints', epoch + 1)
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
            # the tag names the training; that of the model is this run's only if it was asked for
            model_config=dict(label_names=names, pretrained_cfg=dict(tag=split_model_name_tag(args.model)[1] or None)),
            data_config=data_config,
            safe_serialization=True,
        )
        say(f'{time.perf_counter() - start:.0f} s of training; saved in {args.output}')
        say(f'prediction by {folder}: {predict_one(folder, val_set)}')
    say(f'top-1: {progress.history[-1]["eval_top1"]:.2f}')
    accelerator.end_training()


if __name__ == '__main__':
    main()
