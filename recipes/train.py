"""Train a spiking vision transformer: set up, loop, finish. The training step is `train_step`.

    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml
    accelerate launch recipes/train.py --config recipes/configs/msvit/digits.yaml --epochs 5 --lr 1e-3

A config is YAML with the names of the options below, which are those of timm's train.py; an option on the command line
wins over the config. In `--output` a run leaves: config.yaml with all its options, checkpoints/ (for --resume), logs/,
summary.csv, curve.png, test.json with --val-fraction, results_row.csv (a row for hub/results.csv), and model/, a folder
in the Hub's format for timm.create_model('local-dir:OUTPUT/model', pretrained=True).

The accuracy reported is that of the last epoch on the validation split, on every sample once; no epoch is picked by it.
With --val-fraction an epoch is picked by held-out training samples, and then tested once on the validation split.
"""

import json
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from accelerate.utils import set_seed
from huggingface_hub import HfApi
from timm.loss import create_classification_loss
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import timm_snn
from timm_snn.files import write_whole_text
from timm_snn.progress import bar, waiting
from timm_snn.training import options
from timm_snn.training.batches import BatchTransform
from timm_snn.training.checkpoints import Checkpoints
from timm_snn.training.compiling import CompiledBlocks, backend_to_compile
from timm_snn.training.console import give, say
from timm_snn.training.data import (
    choose_samples,
    class_names,
    frames_of,
    make_transform,
    note_on_frames,
    note_on_pictures,
    open_datasets,
)
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.evaluation import averaged_weights, mean_metrics, predict_first
from timm_snn.training.fingerprint import fingerprint
from timm_snn.training.graph import Replayed, check_graph
from timm_snn.training.hardware import device_and_precision, largest_batch_size, make_accelerator
from timm_snn.training.labels import renew_classifier
from timm_snn.training.loading import loading_errors, make_loader, updates_of_epoch
from timm_snn.training.models import (
    check_neurons,
    check_sparse_spikes,
    input_config,
    open_to_train,
    save_model,
    steps_of,
)
from timm_snn.training.on_device import Augmentation, DeviceImages, DeviceSamples
from timm_snn.training.progress import Progress, StopSignal, write_summary
from timm_snn.training.results import results_row
from timm_snn.training.schedules import Phase, Phases, make_schedule
from timm_snn.training.tables import write_csv
from timm_snn.training.tasks import answers_by_step, make_learner, make_task
from timm_snn.training.watch import Watch

LOG_EVERY = 10  # updates


class Run:
    """A training run: what its options make, and how far it is."""

    def __init__(self, args: Namespace) -> None:
        self.stop = StopSignal()
        self.said_time_left = False
        self.progress = Progress()
        self.accelerator = make_accelerator(**options.accelerator_options(args))
        self.is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        self.by_step = answers_by_step(**options.task_options(args))
        self.reported = 'ema' if args.model_ema else 'eval'  # whose accuracy is reported
        self.freeze, self.clip_grad, self.checkpoint_steps = args.freeze, args.clip_grad, args.checkpoint_steps
        if args.model_ema and self.is_sharded:
            raise UserError('--model-ema needs all weights in one place, and FSDP spreads them: use DDP')
        if args.channels_last and self.is_sharded:
            raise UserError('--channels-last lays weights out as FSDP cannot shard them: leave it out, or use DDP')
        if args.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # or cuBLAS refuses to multiply
        seed = partial(set_seed, args.seed, device_specific=True, deterministic=args.deterministic)
        seed()
        self._open_model_and_data(args)
        batch_size = args.batch_size
        if args.find_batch_size:
            with waiting('finding a batch size'):
                batch_size = self._fitting_batch_size(args)
            self.accelerator.gradient_accumulation_steps *= args.batch_size // batch_size
            seed()
        self._make_loaders(args, batch_size)
        lr = args.lr if args.lr_base is None else args.lr_base * self.effective_batch / args.lr_base_size
        self._make_learner(args, lr)
        if args.cuda_graph:
            check_graph(self.accelerator, self.optimizer.optimizer, **options.graph_options(args))
        self._resume(args)
        bare = self.optimizer.optimizer  # of Accelerate's wrapper
        self.watch = Watch(
            self.accelerator, self.model, self.prepared, bare, self.checkpoints, self.stop, self.effective_batch
        )
        self.saving: Any = timm_snn.ops.packed_spikes if args.packed_spikes else nullcontext
        self.graph = Replayed(partial(update, self), bare) if args.cuda_graph else None
        self.update: Any = self.graph or partial(update, self)
        self._introduce(args, batch_size, lr)

    def _open_model_and_data(self, args: Namespace) -> None:
        backend = args.backend or (backend_to_compile(self.accelerator.device) if args.compile else None)
        if backend:
            with one_line_errors(f'create model {args.model!r}'):
                timm_snn.set_backend(backend)
        source = options.data_source(args)
        with self.accelerator.main_process_first():  # one process downloads
            trainable = options.trainable_options(args)
            if self.is_sharded:
                trainable['channels_last'] = False  # the default of our models is what FSDP cannot shard
            self.model = open_to_train(args.model, **trainable)
            self.data_config = input_config(self.model, source.is_events, **options.image_options(args))
            check_neurons(self.model, self.accelerator.device)
            if args.sparse_spikes:
                check_sparse_spikes(self.accelerator.device)
            size = self.data_config['input_size'][1:]
            train_set, val_set = open_datasets(source, args.train_split, args.val_split, self.model, size)
        steps = [steps_of(self.model)] if source.is_events else []
        shape = [*steps, *self.data_config['input_size']]
        self.phases = Phases(self.model, shape, self.accelerator.device, **options.phase_options(args))
        self.class_names, self.is_events = class_names(train_set), source.is_events
        self.notes = [note_on_pictures(train_set, self.data_config)]
        self.frames = frames_of(train_set, source, self.data_config) if source.is_events else None
        if self.frames:
            self.notes.append(note_on_frames(self.model, self.frames))
        if args.pretrained:
            self.notes.append(renew_classifier(self.model, self.class_names))
        self.train_set, self.val_set, self.test_set = choose_samples(
            train_set,
            val_set,
            training_transform=make_transform(self.data_config, self.is_events, **options.transform_options(args)),
            transform=make_transform(self.data_config, self.is_events),
            **options.sample_options(args),
        )
        self.device_images = None
        if args.data_on_device:  # before a batch size is sought for the memory that is left
            augment = Augmentation(self.data_config, **options.transform_options(args))
            self.device_images = DeviceImages(self.train_set, self.accelerator.device, augment)
            self.val_set = DeviceSamples(self.val_set, self.accelerator.device)

    def _fitting_batch_size(self, args: Namespace) -> int:
        criterion = create_classification_loss(smoothing=args.smoothing)
        device, task_options = self.accelerator.device, options.task_options(args)
        return largest_batch_size(
            args.batch_size,
            self.model,
            self.train_set[0][0],
            self.accelerator,
            make_task=lambda twin: make_task(make_learner(twin, self.by_step), criterion, device, **task_options),
            make_optimizer=lambda twin: create_optimizer_v2(twin, lr=args.lr, **options.optimizer_options(args)),
            keeps_average=args.model_ema,
            only_even=bool(args.mixup or args.cutmix),
            channels_last=bool(args.channels_last),
        )

    def _make_loaders(self, args: Namespace, batch_size: int) -> None:
        num_processes, self.accumulation = self.accelerator.num_processes, self.accelerator.gradient_accumulation_steps
        self.effective_batch = batch_size * self.accumulation * num_processes
        self.updates_per_epoch = updates_of_epoch(len(self.train_set), batch_size, num_processes, self.accumulation)
        on_gpu = self.accelerator.device.type == 'cuda'
        self.loader_of = partial(make_loader, batch_size=batch_size, workers=args.workers, pin_memory=on_gpu)
        self.train_loader, self.val_loader = self.accelerator.prepare(
            self.loader_of(self.device_images or self.train_set, number=self.updates_per_epoch * self.effective_batch),
            self.loader_of(self.val_set),
        )

    def _make_learner(self, args: Namespace, lr: float) -> None:
        """Make what learns, and how: `learner` is the model or its steps, `prepared` that on all processes."""
        accelerator = self.accelerator
        with one_line_errors('set up the optimizer'):
            optimizer = create_optimizer_v2(self.model, lr=lr, **options.optimizer_options(args))
        self.learner = make_learner(self.model, self.by_step)
        if args.sync_bn and accelerator.device.type == 'cuda' and accelerator.num_processes > 1:
            self.learner = nn.SyncBatchNorm.convert_sync_batchnorm(self.learner)
        self.compiled = CompiledBlocks(self.model, accelerator.device, say) if args.compile else None
        self.first: Any = self.compiled.first if self.compiled else nullcontext
        self.prepared, self.optimizer = accelerator.prepare(self.learner, optimizer)
        self.ema = None
        if args.model_ema:
            self.ema = ModelEmaV3(self.learner, args.model_ema_decay, use_warmup=args.model_ema_warmup)
        self.transform = BatchTransform(
            self.model.num_classes, self.is_events, images_of=self.device_images, **options.batch_options(args)
        )
        criterion = create_classification_loss(smoothing=args.smoothing, soft_targets=self.transform.mix is not None)
        self.task = make_task(self.prepared, criterion, accelerator.device, **options.task_options(args))
        self.scheduler, self.epochs, self.total_updates, self.last_epoch = make_schedule(
            self.optimizer, self.updates_per_epoch, args.max_steps, **options.schedule_options(args)
        )

    def _resume(self, args: Namespace) -> None:
        """Make the output and the trackers, and go on from a checkpoint if there is one to resume."""
        accelerator, config = self.accelerator, options.as_config(args)
        setup = {'mixed_precision': accelerator.mixed_precision, 'effective_batch': self.effective_batch}
        if accelerator.is_main_process:  # which alone compares and saves it
            train, val = map(fingerprint, self.train_set.source.datasets)
            setup['data'] = {'training': train, 'validation': val}
            if self.frames:
                setup['frames'] = self.frames.to_dict()
        self.checkpoints = Checkpoints(
            accelerator,
            args.output,
            self.progress,
            config,
            setup,
            self.ema,
            args.checkpoint_hist,
            f'{self.reported}_top1',
        )
        self.checkpoints.begin(args.resume, args.overwrite)
        if args.push_to_hub and accelerator.is_main_process:
            with one_line_errors(f'make the repository {args.push_to_hub!r}', 'log in with `hf auth login`'):
                HfApi().create_repo(args.push_to_hub, exist_ok=True)  # now: not after weeks of training
        with one_line_errors(f'log with {args.log_with!r}'):
            accelerator.init_trackers('timm_snn', {name: str(value) for name, value in config.items()})

    def _introduce(self, args: Namespace, batch_size: int, lr: float) -> None:
        processes = self.accelerator.num_processes
        say(
            f'{args.model}: {sum(p.numel() for p in self.model.parameters()):,} parameters, input '
            f'{self.data_config["input_size"]}; {args.dataset}: {len(self.train_set)} training and {len(self.val_set)} '
            f'validation samples; effective batch {self.effective_batch} ({batch_size} x {processes} processes x '
            f'{self.accumulation} accumulated), lr {lr:g}, epochs {self.progress.epoch + 1} to {self.epochs}, '
            f'seed {args.seed}, {device_and_precision(self.accelerator)}'
            + (' (nothing left to train)' if self.progress.epoch >= self.last_epoch else '')
        )
        if args.warmup_epochs >= args.epochs:
            warmup = f'{args.warmup_epochs} of {args.epochs} epochs'
            self.notes.append(f'note: the learning rate warms up for {warmup} and is never {lr:g}')
        for note in filter(None, [*self.notes, str(self.phases)]):
            say(note)

    def enter(self, phase: Phase) -> None:
        """Run the model with this T from now on, and train it with images of this size."""
        if phase.num_steps != steps_of(self.model):
            self.model.num_steps = phase.num_steps
        self.transform.size = phase.size

    def begin(self, epoch: int) -> None:
        """Enter the phase of an epoch. What was recorded or compiled for another one is of no use any more."""
        phase = self.phases.of(epoch)
        self.enter(phase)
        if phase != self.phases.of(max(0, epoch - 1)):
            if self.graph:
                self.graph.forget()
            if self.compiled:
                self.compiled.forget()

    @property
    def updates(self) -> int:
        """Of this epoch, those that nobody has looked at too."""
        return self.progress.updates + self.watch.updates

    def flop_between(self, first: int, last: int) -> float:
        """Of the updates from the first to before the last, by their numbers in the run."""
        total, size = 0.0, self.updates_per_epoch
        for epoch in range(first // size, math.ceil(last / size)):
            updates = min(last, (epoch + 1) * size) - max(first, epoch * size)
            total += updates * self.effective_batch * self.phases.flop(self.phases.of(epoch))
        return total

    def say_time_left(self, images_per_s: float) -> None:
        """Once in a run, early in its first epoch."""
        if not self.said_time_left:
            self.said_time_left = True
            flop_per_s = images_per_s * self.phases.flop(self.phases.of(self.progress.epoch))
            seconds = self.flop_between(self.updates_done, self.total_updates) / max(1.0, flop_per_s)
            say(f'about {timedelta(seconds=round(seconds))} of training to go')

    @property
    def updates_done(self) -> int:
        return self.progress.epoch * self.updates_per_epoch + self.updates

    @property
    def largest_lr(self) -> float:
        """The rate that was asked for: with --layer-decay it is that of the classifier."""
        return max(group['lr'] for group in self.optimizer.param_groups)


def update(run: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Update the weights by the gradients of some batches. All of it can run, and be replayed, on the device alone."""
    accelerator = run.accelerator
    run.watch.begin()
    for images, targets in batches:
        with accelerator.accumulate(run.prepared):  # gradients are averaged over processes in the last batch alone
            with run.saving():
                result = run.task(images, targets)
            accelerator.backward(result['loss'])
            run.watch.add(result['loss'], result['output'], targets)
            if accelerator.sync_gradients:
                batch = {'images': images, 'labels': targets, 'logits': result['output']}
                run.watch.clip(run.clip_grad or math.inf, batch)
            run.optimizer.step()
            run.optimizer.zero_grad()


def train_step(run: Run, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Update the weights once, by as many batches as are accumulated.

    The processes wait once for each other's numbers beside the gradients. On a GPU the host does not wait for the
    device; it looks at the updates now and then, as `Watch` describes.
    Raises: UserError if loss or gradient are not finite, where the host does wait.
    """
    run.scheduler.step_update(run.updates_done)
    run.watch.tell()
    run.update(run.transform(*next(batches)) for _ in range(run.accumulation))
    run.watch.end()
    if run.ema:
        run.ema.update(run.learner, step=run.updates_done)


def train_epoch(run: Run, epoch: int) -> float:
    """Make the updates that are left of an epoch, or of the run. Returns images per second."""
    progress, accelerator = run.progress, run.accelerator
    run.task.train()
    for name in run.freeze:
        run.model.get_submodule(name).eval()  # batch norms keep their statistics
    run.train_set.epoch = epoch
    run.train_loader.set_epoch(epoch)
    run.transform.set_epoch(epoch)
    run.begin(epoch)
    loader = run.train_loader
    if progress.updates:
        loader = accelerator.skip_first_batches(loader, progress.updates * run.accumulation)
    title = f'epoch {epoch + 1}/{run.epochs}'
    shows = bar(title, run.updates_per_epoch, unit='updates', initial=progress.updates)
    start, seen_before, seconds_before = time.perf_counter(), progress.seen, progress.seconds
    with shows, closing(iter(loader)) as batches:  # ends the processes that load data, however the epoch ends
        while run.updates < run.updates_per_epoch and run.updates_done < run.total_updates:
            with run.first('update'):
                train_step(run, batches)
            shows.update()
            is_last = run.updates == run.updates_per_epoch or run.updates_done >= run.total_updates
            is_logged = run.updates % LOG_EVERY == 1
            is_saved = run.checkpoint_steps and run.updates_done % run.checkpoint_steps == 0
            if not (is_last or is_logged or is_saved or run.watch.is_due):
                continue
            must_stop = run.watch.look()
            progress.seconds = seconds_before + time.perf_counter() - start
            if is_logged:
                images_per_s = (progress.seen - seen_before) / (progress.seconds - seconds_before)
                if progress.seen - seen_before > run.effective_batch:  # the first update may compile
                    run.say_time_left(images_per_s)
                state = {
                    'loss': run.watch.loss,
                    'top1': 100 * progress.hits / progress.seen,
                    'images_per_s': images_per_s,
                }
                shows.set_postfix({name: f'{value:.4g}' for name, value in state.items()}, refresh=False)
                accelerator.log({**state, 'gradient': run.watch.gradient_norm, 'lr': run.largest_lr}, run.updates_done)
            if must_stop:
                run.checkpoints.save_and_exit(run.stop)
            if is_saved:
                run.checkpoints.save()
        next(batches, None)  # Accelerate notes the end of a loader when it is asked for more
    seconds = progress.seconds - seconds_before
    return (progress.seen - seen_before) / seconds if seconds else 0.0  # nothing was left of the epoch


def validate(run: Run) -> dict[str, float]:
    """The columns of summary.csv that begin with eval_ and, of the averaged weights, ema_."""
    run.enter(run.phases.full)
    watched = run.model if run.accelerator.is_main_process and not run.is_sharded else None
    evaluate = partial(mean_metrics, run.prepared, run.val_loader, run.accelerator, run.stop, first=run.first)
    metrics = {'eval': evaluate(None if run.ema else watched)}
    if run.ema:
        with averaged_weights(run.learner, run.ema):
            metrics['ema'] = evaluate(watched)
    if run.stop.came_to(run.accelerator):
        run.checkpoints.save_and_exit(run.stop)
    return {f'{whose}_{name}': value for whose in metrics for name, value in metrics[whose].items()}


def finish(run: Run, args: Namespace, argv: Sequence[str], seconds: float) -> None:
    """Test the epoch that held-out samples picked, save the model and its result, predict with it, and upload it."""
    accelerator = run.accelerator
    metric = f'{run.reported}_top1'
    top1, tested = run.progress.history[-1][metric], {}
    document = {'output': args.output, 'model': args.output / 'model', 'seconds': seconds}
    if run.test_set:
        best = run.checkpoints.best
        run.checkpoints.load_weights(best, run.learner)
        loader = accelerator.prepare(run.loader_of(run.test_set))
        tested = mean_metrics(run.prepared, loader, accelerator, run.stop)
        if run.stop.came_to(accelerator):
            run.checkpoints.save_and_exit(run.stop)
        top1 = tested['top1']
        held_out, samples = len(run.val_set), len(run.test_set)
        say(f'{best.name} was the best on {held_out} held-out training samples; on {samples} to test with:')
    elif run.ema:
        run.learner.load_state_dict(run.ema.module.state_dict())
    model = run.model
    if run.is_sharded:
        weights = accelerator.get_state_dict(run.prepared)
        model = open_to_train(args.model, **options.trainable_options(args))
        if accelerator.is_main_process:
            model.load_state_dict(weights)
    if accelerator.is_main_process:
        with one_line_errors(f'write to --output {args.output}'):
            write_summary(run.progress.history, args.output)  # of an epoch whose checkpoint was saved before a kill
        folder = args.output / 'model'
        save_model(model, folder, options.tag_of(args.model), run.class_names, run.data_config, args.fold, run.frames)
        if tested:
            result = {'epoch': run.progress.best_epoch(metric), 'samples': samples, **tested}
            with one_line_errors(f'write to --output {args.output}'):
                write_whole_text(args.output / 'test.json', json.dumps(result, indent=2) + '\n')
        row = results_row(
            options.as_config(args),
            argv,
            score=top1,
            summary=run.progress.history[(run.progress.best_epoch(metric) if tested else run.progress.epoch) - 1],
            processes=accelerator.num_processes,
            device=accelerator.device,
            precision=accelerator.mixed_precision,
            clone=Path(__file__).parents[1],
            is_tested=bool(tested),
        )
        with one_line_errors(f'write to --output {args.output}'):
            write_csv(args.output / 'results_row.csv', [row], lineterminator='\n')
        say(f'{seconds:.0f} s of training; saved in {args.output}')
        say(f'prediction by {folder}: {predict_first(folder, run.val_set, run.is_events)}')
        if args.push_to_hub:
            what = f'upload to {args.push_to_hub!r}'
            with one_line_errors(what, f'the model is in {folder}'), waiting(what):
                commit = HfApi().upload_folder(repo_id=args.push_to_hub, folder_path=folder)
                say(f'uploaded: {commit.commit_url}')
                document['commit'] = commit.commit_url
    accelerator.end_training()
    last = run.progress.history[-1]
    give({'top1': top1, **document, 'tested': tested or None, 'last_epoch': last}, f'top-1: {top1:.2f}')


@script(kept='the newest checkpoint stays', to_go_on=('--resume', 'auto'))
def main(argv: Sequence[str] | None = None) -> None:
    args = options.training_options(argv, __doc__)
    run = Run(args)
    progress, accelerator = run.progress, run.accelerator
    start, updates_before = time.perf_counter(), run.updates_done
    with run.stop.noting_ctrl_c():
        for epoch in range(progress.epoch, run.last_epoch):
            with loading_errors('--resume auto goes on from the last checkpoint'):
                images_per_s = train_epoch(run, epoch)
                is_whole = progress.updates == run.updates_per_epoch
                if not is_whole:  # --max-steps; with a larger one the run can go on from here
                    run.checkpoints.save()
                evaluated = validate(run)
            phase = run.phases.of(epoch)
            row = {
                'epoch': epoch,
                'lr': run.largest_lr,
                'train_loss': progress.loss_sum / progress.seen,
                'train_top1': 100 * progress.hits / progress.seen,
                **evaluated,
                'images_per_s': images_per_s,
                'train_num_steps': phase.num_steps,
                'train_img_size': phase.size[0],
                'eval_num_steps': run.phases.full.num_steps,
                **progress.totals(run.phases.flop(phase)),
            }
            progress.finish_epoch(row)
            if is_whole:
                run.checkpoints.save()
            if accelerator.is_main_process:
                with one_line_errors(f'write to --output {args.output}'):
                    write_summary(progress.history, args.output)
            accelerator.log(row, run.updates_done)
            left = run.flop_between(run.updates_done, run.total_updates)
            pace = (time.perf_counter() - start) / max(1.0, run.flop_between(updates_before, run.updates_done))
            loss, top1 = row[f'{run.reported}_loss'], row[f'{run.reported}_top1']
            say(
                f'epoch {epoch + 1}/{run.epochs}: training loss {row["train_loss"]:.3f}, validation loss {loss:.3f}, '
                f'top-1 {top1:.2f}, {images_per_s:.0f} images/s'
                + (f' with {phase}' if str(run.phases) else '')
                + (f', {timedelta(seconds=round(left * pace))} left' if left > 0 else '')
            )
            if not is_whole:
                break
    finish(run, args, sys.argv[1:] if argv is None else argv, time.perf_counter() - start)


if __name__ == '__main__':
    main()
