"""Train a spiking vision transformer: one Accelerate loop, to be read from top to bottom.

    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml
    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml --epochs 5 --lr 1e-3

A config is YAML with the names of the options below, which are those of timm's train.py; an option on the command line
wins over the config. In `--output` a run leaves: config.yaml with all its options, checkpoints/ (for --resume), logs/,
summary.csv, curve.png, test.json with --val-fraction, and model/, a folder in the Hub's format for
timm.create_model('local-dir:OUTPUT/model', pretrained=True).

The accuracy reported is that of the last epoch on the validation split, on every sample once; no epoch is picked by it.
With --val-fraction an epoch is picked by held-out training samples, and then tested once on the validation split.
"""

import argparse
import copy
import csv
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import matplotlib
import timm
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    DataLoaderConfiguration,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    find_executable_batch_size,
    set_seed,
)
from checkpoints import Checkpoints, Progress, StopSignal, prepare_output, save_failure
from data import EVENT_DATASETS, Samples, choose_samples, class_names, make_transform, open_datasets
from huggingface_hub import HfApi
from options import as_config, one_line_errors, parse_args, tag_of
from tasks import StepLogits, make_task
from timm.data import Mixup, resolve_input_data_config
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

import timm_snn
from timm_snn.data import EventAugment, EventMixup
from timm_snn.models import save_for_hf
from timm_snn.ops import lif

matplotlib.use('Agg')
from matplotlib import pyplot as plt


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Processes, devices and precision are as `accelerate launch` says."""
    steps = args.grad_accum_steps or int(os.environ.get('ACCELERATE_GRADIENT_ACCUMULATION_STEPS', 1))
    with one_line_errors(f'log with {args.log_with!r}', 'install it, or pass --log-with none'):
        accelerator = Accelerator(
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=steps),
            # The order of the images is that of the seed alone: the processes share one order and take turns in it.
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
            step_scheduler_with_optimizer=False,
            log_with=None if args.log_with == 'none' else args.log_with,
            project_config=ProjectConfiguration(str(args.output), logging_dir=str(args.output / 'logs')),
            dynamo_backend='inductor' if args.compile else None,
        )
        if args.log_with != 'none' and not accelerator.log_with:  # Accelerate leaves out what is not installed
            raise ValueError('it is not installed')
    if accelerator.mixed_precision == 'fp16' and accelerator.device.type == 'cpu':  # Accelerate would use float32
        raise SystemExit('error: mixed precision fp16 needs a GPU: pass --mixed_precision bf16 or no to accelerate')
    if (launched := int(os.environ.get('WORLD_SIZE', 1))) != accelerator.num_processes:
        raise SystemExit(
            f'error: {launched} processes were launched, and each would train alone: without CUDA they need '
            'ACCELERATE_USE_CPU=1'
        )
    if accelerator.device.type == 'cpu':
        # accelerate launch gives every process one thread unless it is told otherwise
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        torch.set_num_threads(args.num_threads or max(1, cores // accelerator.num_processes))
    return accelerator


def make_model(args: argparse.Namespace, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The model, and how its input is prepared."""
    with one_line_errors(f'create model {args.model!r}'):
        if args.backend:
            timm_snn.set_backend(args.backend)
        model: Any = timm.create_model(
            args.model,
            pretrained=args.pretrained,
            checkpoint_path=str(args.checkpoint or ''),
            num_classes=args.num_classes,
            in_chans=args.in_chans,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
        options = {k: v for k, v in vars(args).items() if v is not None}
        data_config = resolve_input_data_config(model, args=options)
        if args.grad_checkpointing:
            model.set_grad_checkpointing()
        modules = dict(model.named_modules())
        for name in args.freeze:
            if name not in modules:
                raise ValueError(f'it has no module {name!r} to freeze, but {", ".join(dict(model.named_children()))}')
            modules[name].requires_grad_(False)
        if args.channels_last:
            model = model.to(memory_format=torch.channels_last)
    with one_line_errors('run the neurons'):
        for backend in {getattr(module, 'backend', None) for module in model.modules()}:
            lif(torch.zeros(1, 1, device=device), backend=backend)  # one that cannot run here says why
    return model, data_config


def largest_batch_size(args: argparse.Namespace, accelerator: Accelerator, model: Any, image: torch.Tensor) -> int:
    """--batch-size, or the first of its halves with which a copy of the model makes an update in the memory there is.

    The update has the loss, the teacher, the average and the buckets of the gradients of DDP as the run will, but is
    not compiled. Of all processes, that with the least memory decides.
    """
    device = accelerator.device

    def update(batch_size: int) -> int:
        twin = copy.deepcopy(model).to(device)
        learner = StepLogits(twin) if args.tet is not None else twin
        kept: list[Any] = [ModelEmaV3(learner)] if args.model_ema else []
        kept += [torch.empty_like(p) for p in twin.parameters() if p.requires_grad and accelerator.num_processes > 1]
        task = make_task(args, learner, create_classification_loss(smoothing=args.smoothing), device).train()
        optimizer = create_optimizer_v2(twin, opt=args.opt, lr=args.lr)
        images = image.to(device).expand(batch_size, *image.shape).clone()
        if args.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        with accelerator.autocast():
            loss = task(images, torch.zeros(batch_size, dtype=torch.long, device=device))['loss']
        loss.backward()
        optimizer.step()
        return batch_size

    sizes = [args.batch_size >> i for i in range(args.batch_size.bit_length()) if args.batch_size % (1 << i) == 0]
    if args.mixup or args.cutmix:
        sizes = [size for size in sizes if size % 2 == 0]
    smaller = iter([*sizes[1:], 0])
    with one_line_errors('find a batch size'):
        fitting = find_executable_batch_size(update, args.batch_size, lambda: next(smaller))()
    return int(accelerator.gather(torch.tensor([fitting], device=accelerator.device)).min())


@torch.inference_mode()
def evaluate(
    learner: torch.nn.Module, loader: Any, accelerator: Accelerator, stop: StopSignal, watched: Any = None
) -> dict[str, float]:
    """Mean loss and top-1 accuracy in percent over every sample once, however many processes share them.

    Of a model to be watched, the firing rates by stage over the first batch besides. Ends early when told to stop, and
    for a sample that cannot be read, which the other processes learn of through `stop`; what it returns is then
    no result.
    """
    learner.eval()
    losses: list[torch.Tensor] = []
    hits: list[torch.Tensor] = []
    rates: dict[str, float] = {}
    for images, labels in stop.readable(loader):
        if stop.came_to(accelerator):
            return {}
        if watched and not losses:
            report = timm_snn.profile(watched, images, progress=False)
            rates = {
                f'rate_{stage.name}': stage.firing_rate for stage in report.stages if stage.firing_rate is not None
            }
        logits = learner(images)
        if logits.ndim == 3:  # of every time step
            logits = logits.mean(1)
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction='none')
        loss, hit = accelerator.gather_for_metrics((loss, logits.argmax(1) == labels))
        losses.append(loss.cpu())
        hits.append(hit.cpu())
    if stop.came_to(accelerator):
        return {}
    top1 = 100 * torch.cat(hits).double().mean().item()
    return {'loss': torch.cat(losses).double().mean().item(), 'top1': top1, **rates}


@contextmanager
def averaged(model: torch.nn.Module, ema: ModelEmaV3) -> Iterator[None]:
    """The model with the averaged weights, in the same tensors: what wraps or compiled it need not know."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(ema.module.state_dict())
    yield
    model.load_state_dict(weights)


def write_summary(history: list[dict[str, float]], output: Path) -> None:
    """summary.csv and curve.png of the epochs so far."""
    with open(output / 'summary.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout='constrained')
    epochs = [row['epoch'] + 1 for row in history]
    curves = {'train': 'training', 'eval': 'validation', 'ema': 'validation, averaged weights'}
    for axes, metric, label in ((left, 'loss', 'loss'), (right, 'top1', 'top-1 accuracy (%)')):
        for split, name in curves.items():
            if f'{split}_{metric}' in history[0]:
                axes.plot(epochs, [row[f'{split}_{metric}'] for row in history], label=name)
        axes.set(xlabel='epoch', ylabel=label)
        axes.legend()
    figure.savefig(output / 'curve.png', dpi=120)
    plt.close(figure)


def predict_one(folder: Path, samples: Samples, is_events: bool) -> str:
    """What the saved model, loaded as a user would, says of the first validation sample."""
    model: Any = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = make_transform(resolve_input_data_config(model), is_events)
    image, label = Samples(samples.source, samples.indices, transform)[0]
    with torch.inference_mode():
        probabilities = model(image.unsqueeze(0)).softmax(1)[0]
    names = model.pretrained_cfg.get('label_names') or range(model.num_classes)
    guess = int(probabilities.argmax())
    return f'validation sample 0 is {names[guess]!r} with {probabilities[guess]:.1%}, its label is {names[label]!r}'


def ignore_sigterm(_: int) -> None:
    """For the processes that load data: the main one needs them still when it is told to save and stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def main() -> None:
    args = parse_args(__doc__ or '')
    stop = StopSignal()
    accelerator = make_accelerator(args)
    say, num_processes, is_main = accelerator.print, accelerator.num_processes, accelerator.is_main_process
    if args.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # or cuBLAS refuses to multiply
    set_seed(args.seed, device_specific=True, deterministic=args.deterministic)
    with accelerator.main_process_first():  # one process downloads
        model, data_config = make_model(args, accelerator.device)
        sources = open_datasets(args, model, data_config['input_size'][1:])
    train_set, val_set, test_set = choose_samples(args, *sources)
    with one_line_errors('set up the augmentation'):
        is_events = args.dataset in EVENT_DATASETS
        train_set.transform = make_transform(
            data_config,
            is_events,
            scale=args.scale,
            ratio=args.ratio,
            hflip=args.hflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            re_prob=args.reprob,
            re_mode=args.remode,
        )
        for samples in (val_set, test_set):
            if samples:
                samples.transform = make_transform(data_config, is_events)
        augment = EventAugment(**args.event_aug) if args.event_aug is not None else None

    batch_size = args.batch_size
    if args.find_batch_size:
        batch_size = largest_batch_size(args, accelerator, model, train_set[0][0])
        accelerator.gradient_accumulation_steps *= args.batch_size // batch_size
        set_seed(args.seed, device_specific=True, deterministic=args.deterministic)
    accumulation = accelerator.gradient_accumulation_steps
    effective_batch = batch_size * accumulation * num_processes
    updates_per_epoch = len(train_set) // effective_batch
    if updates_per_epoch == 0:
        raise SystemExit(
            f'error: {len(train_set)} training samples do not fill a batch of {batch_size} for each of {num_processes} '
            f'processes and {accumulation} steps of accumulation: pass a smaller --batch-size'
        )
    loader_args: dict[str, Any] = dict(
        batch_size=batch_size,
        num_workers=args.workers,
        pin_memory=accelerator.device.type == 'cuda',
        worker_init_fn=ignore_sigterm,
        generator=torch.Generator(),  # not the global one, which must not see how often a run was stopped
    )
    # Only as many samples as fill whole updates; they are others in every epoch.
    sampler = RandomSampler(train_set, num_samples=updates_per_epoch * effective_batch)
    train_loader, val_loader = accelerator.prepare(
        DataLoader(train_set, sampler=sampler, **loader_args), DataLoader(val_set, **loader_args)
    )

    lr = args.lr if args.lr_base is None else args.lr_base * effective_batch / args.lr_base_size
    with one_line_errors('set up the optimizer'):
        optimizer = create_optimizer_v2(
            model, opt=args.opt, lr=lr, weight_decay=args.weight_decay, layer_decay=args.layer_decay
        )
    with one_line_errors('set up the loss at every time step'):
        plain = StepLogits(model) if args.tet is not None else model
    if args.sync_bn and accelerator.device.type == 'cuda' and num_processes > 1:
        plain = torch.nn.SyncBatchNorm.convert_sync_batchnorm(plain)
    learner, optimizer = accelerator.prepare(plain, optimizer)
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    if args.model_ema and is_sharded:
        raise SystemExit('error: --model-ema needs all weights in one place, and FSDP spreads them: use DDP')
    ema = ModelEmaV3(plain, args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None
    mixup = None
    if args.mixup > 0 or args.cutmix > 0:
        mixup = (EventMixup if is_events else Mixup)(
            args.mixup,
            args.cutmix,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
            label_smoothing=args.smoothing,
            num_classes=model.num_classes,
        )
    criterion = create_classification_loss(smoothing=args.smoothing, soft_targets=mixup is not None)
    task = make_task(args, learner, criterion, accelerator.device)
    with one_line_errors('set up the schedule'):
        scheduler, epochs = create_scheduler_v2(
            optimizer,
            sched=args.sched,
            num_epochs=args.epochs,
            cooldown_epochs=args.cooldown_epochs,
            warmup_epochs=args.warmup_epochs,
            warmup_lr=args.warmup_lr,
            min_lr=args.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates_per_epoch,
        )
    total_updates = min(epochs * updates_per_epoch, args.max_steps or epochs * updates_per_epoch)
    last_epoch = math.ceil(total_updates / updates_per_epoch)

    progress = Progress()
    reported = 'ema' if ema else 'eval'
    setup = {'mixed_precision': accelerator.mixed_precision, 'effective_batch': effective_batch}
    checkpoints = Checkpoints(accelerator, args.output, progress, setup, ema, args.checkpoint_hist, f'{reported}_top1')
    if checkpoint := prepare_output(args, accelerator, setup):
        checkpoints.load(checkpoint)
    if args.push_to_hub and is_main:
        with one_line_errors(f'make the repository {args.push_to_hub!r}', 'log in with `hf auth login`'):
            HfApi().create_repo(args.push_to_hub, exist_ok=True)  # now: not after weeks of training
    with one_line_errors(f'log with {args.log_with!r}'):
        accelerator.init_trackers('timm_snn', {name: str(value) for name, value in as_config(args).items()})

    def updates_done() -> int:
        return progress.epoch * updates_per_epoch + progress.updates

    def save_and_exit() -> NoReturn:
        saved = checkpoints.save()
        if stop.unreadable:
            raise SystemExit(f'error: cannot evaluate: {stop.unreadable}; --resume auto goes on from {saved}')
        say(f'stopped by {"SIGTERM" if stop.came else "another process"}; --resume auto goes on from {saved}')
        accelerator.end_training()
        sys.exit(128 + signal.SIGTERM)

    def largest_lr() -> float:  # with --layer-decay that of the classifier, which is what was asked for
        return max(group['lr'] for group in optimizer.param_groups)

    say(
        f'{args.model}: {sum(p.numel() for p in model.parameters()):,} parameters, input {data_config["input_size"]}; '
        f'{args.dataset}: {len(train_set)} training and {len(val_set)} validation samples; effective batch '
        f'{effective_batch} ({batch_size} x {num_processes} processes x {accumulation} accumulated), lr {lr:g}, epochs '
        f'{progress.epoch + 1} to {epochs}, seed {args.seed}, {accelerator.device}'
        + (' (nothing left to train)' if progress.epoch >= last_epoch else '')
    )
    if args.warmup_epochs >= args.epochs:
        say(f'note: the learning rate warms up for {args.warmup_epochs} of {args.epochs} epochs and is never {lr:g}')
    start, updates_before = time.perf_counter(), updates_done()
    for epoch in range(progress.epoch, last_epoch):
        task.train()
        for name in args.freeze:
            model.get_submodule(name).eval()  # batch norms keep their statistics
        train_set.epoch = epoch
        train_loader.set_epoch(epoch)
        batches = train_loader
        if progress.updates:
            batches = accelerator.skip_first_batches(train_loader, progress.updates * accumulation)
        if mixup:
            mixup.mixup_enabled = args.mixup_off_epoch == 0 or epoch < args.mixup_off_epoch
        title = f'epoch {epoch + 1}/{epochs}'
        bar = tqdm(total=updates_per_epoch, initial=progress.updates, desc=title, leave=False, disable=not is_main)
        epoch_start, seen_before = time.perf_counter(), progress.seen
        sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # loss, hits, samples of an update
        for images, labels in batches:
            if updates_done() >= total_updates:
                break
            if args.channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            if augment:
                images = augment(images)
            if mixup:
                images, labels = mixup(images, labels)
            scheduler.step_update(updates_done())
            with accelerator.accumulate(learner):
                result = task(images, labels)
                accelerator.backward(result['loss'])
                hits = result['output'].argmax(1) == (labels.argmax(1) if mixup else labels)
                sums[0] += result['loss'].detach() * len(images)
                sums[1] += hits.sum()
                sums[2] += len(images)
                if accelerator.sync_gradients:
                    norm = float(accelerator.clip_grad_norm_(learner.parameters(), args.clip_grad or math.inf))
                    # of all processes, which then do the same
                    loss_sum, num_hits, seen = accelerator.reduce(sums).tolist()
                    # a scaler tries gradients that are too large for float16 again, smaller by half
                    tries = accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1
                    if not math.isfinite(loss_sum) or not (math.isfinite(norm) or tries):
                        where = f'update {progress.updates + 1} of epoch {epoch + 1}'
                        batch = {'images': images, 'labels': labels, 'logits': result['output']}
                        facts = {'where': where, 'loss': loss_sum / seen, 'gradient norm': norm}
                        folder = save_failure(accelerator, args.output, model, batch, facts)
                        start_from = '' if is_sharded else f' --checkpoint {folder}/state/model.safetensors'
                        raise SystemExit(
                            f'error: loss {loss_sum / seen:g}, gradient norm {norm:g} in {where}; the state before it '
                            f'and its batch are in {folder}; a lower --lr or --clip-grad may help, in a new run: pass '
                            f'--output NEW{start_from} too'
                        )
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            sums.zero_()
            progress.add_update(loss_sum, num_hits, seen)
            if ema:
                ema.update(plain, step=updates_done())
            bar.update()
            if progress.updates % 10 == 1:
                state = {
                    'loss': loss_sum / seen,
                    'top1': 100 * progress.hits / progress.seen,
                    'images_per_s': (progress.seen - seen_before) / (time.perf_counter() - epoch_start),
                }
                bar.set_postfix({name: f'{value:.4g}' for name, value in state.items()})
                accelerator.log({**state, 'gradient': norm, 'lr': largest_lr()}, updates_done())
            if stop.came_to(accelerator):
                save_and_exit()
            if args.checkpoint_steps and updates_done() % args.checkpoint_steps == 0:
                checkpoints.save()
        bar.close()
        images_per_s = (progress.seen - seen_before) / (time.perf_counter() - epoch_start)
        is_whole = progress.updates == updates_per_epoch
        if not is_whole:  # --max-steps; with a larger one the run can go on from here
            checkpoints.save()

        watched = model if is_main and not is_sharded else None
        metrics = {'eval': evaluate(learner, val_loader, accelerator, stop, None if ema else watched)}
        if ema:
            with averaged(plain, ema):
                metrics['ema'] = evaluate(learner, val_loader, accelerator, stop, watched)
        if stop.came_to(accelerator):
            save_and_exit()
        row = {
            'epoch': epoch,
            'lr': largest_lr(),
            'train_loss': progress.loss_sum / progress.seen,
            'train_top1': 100 * progress.hits / progress.seen,
            **{f'{split}_{name}': value for split in metrics for name, value in metrics[split].items()},
            'images_per_s': images_per_s,
        }
        progress.finish_epoch(row)
        if is_whole:
            checkpoints.save()
        if is_main:
            with one_line_errors(f'write to --output {args.output}'):
                write_summary(progress.history, args.output)
        accelerator.log(row, updates_done())
        left = total_updates - updates_done()
        pace = (time.perf_counter() - start) / max(1, updates_done() - updates_before)
        say(
            f'{title}: training loss {row["train_loss"]:.3f}, validation loss {row[f"{reported}_loss"]:.3f}, '
            f'top-1 {row[f"{reported}_top1"]:.2f}, {images_per_s:.0f} images/s'
            + (f', {timedelta(seconds=round(left * pace))} left' if left > 0 else '')
        )
        if not is_whole:
            break

    top1 = progress.history[-1][f'{reported}_top1']
    tested: dict[str, float] = {}
    if test_set:
        best = checkpoints.best
        checkpoints.load_weights(best, plain)
        tested = evaluate(learner, accelerator.prepare(DataLoader(test_set, **loader_args)), accelerator, stop)
        if stop.came_to(accelerator):
            save_and_exit()
        top1 = tested['top1']
        say(f'{best.name} was the best on {len(val_set)} held-out training samples; on {len(test_set)} to test with:')
    elif ema:
        plain.load_state_dict(ema.module.state_dict())
    if is_sharded:
        weights = accelerator.get_state_dict(learner)
        model = make_model(args, accelerator.device)[0]
        if is_main:
            model.load_state_dict(weights)
    if is_main:
        folder = args.output / 'model'
        model.to(memory_format=torch.contiguous_format)  # which safetensors needs
        with one_line_errors(f'write {folder}'):
            save_for_hf(
                model,
                folder,
                # the tag names the training; that of the model is this run's only if it was asked for
                model_config=dict(
                    label_names=class_names(sources[0]),
                    pretrained_cfg=dict(tag=tag_of(args.model), label_names=None, label_descriptions=None),
                ),
                data_config=data_config,
            )
        if test_set:
            epoch = progress.best_epoch(f'{reported}_top1')
            with one_line_errors(f'write to --output {args.output}'):
                result = {'epoch': epoch, 'samples': len(test_set), **tested}
                (args.output / 'test.json').write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
        say(f'{time.perf_counter() - start:.0f} s of training; saved in {args.output}')
        say(f'prediction by {folder}: {predict_one(folder, val_set, is_events)}')
        if args.push_to_hub:
            with one_line_errors(f'upload to {args.push_to_hub!r}', f'the model is in {folder}'):
                commit = HfApi().upload_folder(repo_id=args.push_to_hub, folder_path=folder)
                say(f'uploaded: {commit.commit_url}')
    say(f'top-1: {top1:.2f}')
    accelerator.end_training()


if __name__ == '__main__':
    main()
