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

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

import torch
from accelerate import DistributedType
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from timm.data import Mixup
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

import timm_snn
from timm_snn.data import EventAugment, EventMixup
from timm_snn.models import save_for_hf
from timm_snn.training.checkpoints import Checkpoints, prepare_output, save_failure
from timm_snn.training.data import choose_samples, class_names, make_transform, open_datasets
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.evaluation import averaged_weights, mean_metrics, predict_first
from timm_snn.training.hardware import largest_batch_size, make_accelerator
from timm_snn.training.models import check_neurons, input_config, open_to_train
from timm_snn.training.options import as_config, data_source, image_options, tag_of, training_options
from timm_snn.training.progress import Progress, StopSignal, write_summary
from timm_snn.training.tasks import StepLogits, make_task


def ignore_sigterm(_: int) -> None:
    """For the processes that load data: the main one needs them still when it is told to save and stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@script
def main(argv: Sequence[str] | None = None) -> None:
    args = training_options(argv, __doc__)
    stop = StopSignal()
    accelerator = make_accelerator(
        args.output,
        log_with=args.log_with,
        seed=args.seed,
        grad_accum_steps=args.grad_accum_steps,
        num_threads=args.num_threads,
        compile=args.compile,
    )
    say, num_processes, is_main = accelerator.print, accelerator.num_processes, accelerator.is_main_process
    if args.deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # or cuBLAS refuses to multiply
    set_seed(args.seed, device_specific=True, deterministic=args.deterministic)
    with accelerator.main_process_first():  # one process downloads
        if args.backend:
            with one_line_errors(f'create model {args.model!r}'):
                timm_snn.set_backend(args.backend)
        open_it = partial(
            open_to_train,
            args.model,
            pretrained=args.pretrained,
            checkpoint=args.checkpoint,
            freeze=args.freeze,
            grad_checkpointing=args.grad_checkpointing,
            channels_last=args.channels_last,
            num_classes=args.num_classes,
            in_chans=args.in_chans,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
        model = open_it()
        image = image_options(args) | ({} if args.in_chans is None else {'in_chans': args.in_chans})
        data_config = input_config(model, **image)
        check_neurons(model, accelerator.device)
        source = data_source(args)
        sources = open_datasets(source, args.train_split, args.val_split, model, data_config['input_size'][1:])
    train_set, val_set, test_set = choose_samples(
        *sources,
        seed=args.seed,
        fold=args.fold,
        val_fraction=args.val_fraction,
        max_train_samples=args.max_train_samples,
        max_val_samples=args.max_val_samples,
    )
    with one_line_errors('set up the augmentation'):
        is_events = source.is_events
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

    task_of = partial(
        make_task,
        device=accelerator.device,
        tet=args.tet,
        teacher=args.kd_model_name,
        teacher_checkpoint=args.kd_checkpoint,
        teacher_temperature=args.kd_temperature,
        task_weight=args.kd_task_weight,
    )
    batch_size = args.batch_size
    if args.find_batch_size:
        criterion = create_classification_loss(smoothing=args.smoothing)
        batch_size = largest_batch_size(
            args.batch_size,
            model,
            train_set[0][0],
            accelerator,
            make_task=lambda twin: task_of(StepLogits(twin) if args.tet is not None else twin, criterion),
            make_optimizer=lambda twin: create_optimizer_v2(twin, opt=args.opt, lr=args.lr),
            keeps_average=args.model_ema,
            only_even=bool(args.mixup or args.cutmix),
            channels_last=args.channels_last,
        )
        accelerator.gradient_accumulation_steps *= args.batch_size // batch_size
        set_seed(args.seed, device_specific=True, deterministic=args.deterministic)
    accumulation = accelerator.gradient_accumulation_steps
    effective_batch = batch_size * accumulation * num_processes
    updates_per_epoch = len(train_set) // effective_batch
    if updates_per_epoch == 0:
        raise UserError(
            f'{len(train_set)} training samples do not fill a batch of {batch_size} for each of {num_processes} '
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
        raise UserError('--model-ema needs all weights in one place, and FSDP spreads them: use DDP')
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
    task = task_of(learner, criterion)
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
    checkpoint = prepare_output(
        args.output, as_config(args), setup, accelerator, resume=args.resume, overwrite=args.overwrite
    )
    if checkpoint and (warning := checkpoints.load(checkpoint)):
        print(warning)
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
            raise UserError(f'cannot evaluate: {stop.unreadable}; --resume auto goes on from {saved}')
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
                        raise UserError(
                            f'loss {loss_sum / seen:g}, gradient norm {norm:g} in {where}; the state before it '
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
        metrics = {'eval': mean_metrics(learner, val_loader, accelerator, stop, None if ema else watched)}
        if ema:
            with averaged_weights(plain, ema):
                metrics['ema'] = mean_metrics(learner, val_loader, accelerator, stop, watched)
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
        tested = mean_metrics(learner, accelerator.prepare(DataLoader(test_set, **loader_args)), accelerator, stop)
        if stop.came_to(accelerator):
            save_and_exit()
        top1 = tested['top1']
        say(f'{best.name} was the best on {len(val_set)} held-out training samples; on {len(test_set)} to test with:')
    elif ema:
        plain.load_state_dict(ema.module.state_dict())
    if is_sharded:
        weights = accelerator.get_state_dict(learner)
        model = open_it()
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
        say(f'prediction by {folder}: {predict_first(folder, val_set, is_events)}')
        if args.push_to_hub:
            with one_line_errors(f'upload to {args.push_to_hub!r}', f'the model is in {folder}'):
                commit = HfApi().upload_folder(repo_id=args.push_to_hub, folder_path=folder)
                say(f'uploaded: {commit.commit_url}')
    say(f'top-1: {top1:.2f}')
    accelerator.end_training()


if __name__ == '__main__':
    main()
