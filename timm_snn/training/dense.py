"""The loop of the recipes whose answers are dense, masks or boxes: set up, train, evaluate, save.

A recipe makes a `DenseTask` of its options, and `run_dense` does the rest by the parts of recipes/train.py: Accelerate,
checkpoints that a run goes on from exactly, averaged weights, trackers. In `--output` a run leaves config.yaml,
checkpoints/, logs/, summary.csv, curve.png, results_row.csv, per_class.csv, predictions.png, test.json with
--test-split, and model/, a folder for timm_snn.dense.load. What is reported is the last epoch; none is picked.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import DistributedType
from accelerate.utils import broadcast, send_to_device, set_seed
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Subset

from ..dense import save
from ..files import write_whole_text
from ..models.weights import check_finite
from ..ops import set_backend
from ..profiling import Report, profile
from ..progress import bar, track
from . import options
from .checkpoints import Checkpoints
from .console import give, say
from .dense_data import JointSamples, JointTrainingSamples
from .errors import UserError, one_line_errors
from .evaluation import averaged_weights
from .fingerprint import fingerprint
from .hardware import device_and_precision, make_accelerator
from .loading import loading_errors, make_loader, updates_of_epoch
from .models import check_neurons, check_sparse_spikes, made_ready
from .options import Namespace
from .progress import Progress, StopSignal, write_summary
from .results import results_row
from .schedules import make_schedule
from .tables import write_csv
from .watch import Watch

__all__ = ['DenseRun', 'DenseTask', 'Metric', 'load_weights', 'run_dense', 'training_flop']

LOG_EVERY = 10  # updates
PROFILED = 8  # samples


class Metric(Protocol):
    """What is measured over a split, by metrics of torchmetrics, which put together what the processes have seen."""

    by_class: list[dict[str, Any]]  # rows of per_class.csv, after `compute`

    def to(self, device: torch.device) -> Any: ...

    def update(self, predictions: Any, targets: Any) -> None:
        """Add a batch: what the learner returned, and the targets as they were collated."""
        ...

    def compute(self) -> dict[str, float]:
        """The columns of summary.csv, without the prefix eval_ or ema_; scores are in percent."""
        ...


@dataclass
class DenseTask:
    """What a recipe makes of its options."""

    name: str  # 'segmentation' or 'detection'
    title: str  # of the model, as in 'msvit_3_192 + spiking_unet'
    learner: nn.Module  # (images, targets) -> dict of losses in training, (images) -> predictions in eval mode
    model: nn.Module  # the part of the learner that is saved, by timm_snn.dense.save
    train_set: JointTrainingSamples
    val_set: JointSamples
    test_set: JointSamples | None
    collate: Callable[[list[Any]], tuple[Any, Any]]  # samples -> (images, targets)
    make_metric: Callable[[], Metric]
    metric: str  # the column that is reported, in percent
    label: str  # and its name for people, as in 'mean IoU'
    picture: Callable[[nn.Module, JointSamples, Path], None]  # writes a PNG of some samples with what is predicted
    class_names: list[str]
    data_config: dict[str, Any]  # of `timm_snn.dense.save`
    notes: list[str] = field(default_factory=list)  # printed before training begins
    flop: float = math.nan  # of one image in training, see `training_flop`; NaN is not known


OpenTask = Callable[[Namespace], DenseTask]


class DenseRun:
    """A training run: what its options make, and how far it is."""

    def __init__(self, args: Namespace, open_task: OpenTask) -> None:
        self.stop, self.progress = StopSignal(), Progress()
        self.accelerator = accelerator = make_accelerator(**options.accelerator_options(args))
        if accelerator.distributed_type == DistributedType.FSDP:
            raise UserError('this recipe trains on whole weights, and FSDP spreads them: use DDP')
        self.reported = 'ema' if args.model_ema else 'eval'  # whose score is reported
        self.freeze, self.clip_grad, self.checkpoint_steps = args.freeze, args.clip_grad, args.checkpoint_steps
        self.batch_size = args.batch_size
        if args.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # or cuBLAS refuses to multiply
        set_seed(args.seed, device_specific=True, deterministic=args.deterministic)
        if args.backend:
            with one_line_errors('set the backend of the neurons'):
                set_backend(args.backend)
        with accelerator.main_process_first():  # one process downloads
            self.task = open_task(args)
        self.model = self.task.model
        with one_line_errors('set up the model'):
            made_ready(self.model, **options.trained_part_options(args))
        check_neurons(self.model, accelerator.device)
        if args.sparse_spikes:
            check_sparse_spikes(accelerator.device)
        self._make_loader(args)
        self._make_learner(args)
        self._resume(args)
        self.watch = Watch(
            accelerator,
            self.model,
            self.prepared,
            self.optimizer.optimizer,
            self.checkpoints,
            self.stop,
            self.effective_batch,
        )
        self._introduce(args)

    def _make_loader(self, args: Namespace) -> None:
        self.accumulation, processes = self.accelerator.gradient_accumulation_steps, self.accelerator.num_processes
        self.effective_batch = self.batch_size * self.accumulation * processes
        samples = len(self.task.train_set)
        self.updates_per_epoch = updates_of_epoch(samples, self.batch_size, processes, self.accumulation)
        self.loader_of = partial(
            make_loader,
            batch_size=self.batch_size,
            workers=args.workers,
            pin_memory=self.accelerator.device.type == 'cuda',
            collate=self.task.collate,
        )
        number = self.updates_per_epoch * self.effective_batch
        self.train_loader = self.accelerator.prepare(self.loader_of(self.task.train_set, number=number))

    def _make_learner(self, args: Namespace) -> None:
        accelerator = self.accelerator
        self.lr = args.lr if args.lr_base is None else args.lr_base * self.effective_batch / args.lr_base_size
        with one_line_errors('set up the optimizer'):
            optimizer = create_optimizer_v2(self.model, lr=self.lr, **options.dense_optimizer_options(args))
        self.learner = self.task.learner
        if args.sync_bn and accelerator.device.type == 'cuda' and accelerator.num_processes > 1:
            self.learner = nn.SyncBatchNorm.convert_sync_batchnorm(self.learner)
        self.prepared, self.optimizer = accelerator.prepare(self.learner, optimizer)
        self.ema = None
        if args.model_ema:
            self.ema = ModelEmaV3(self.learner, args.model_ema_decay, use_warmup=args.model_ema_warmup)
        self.scheduler, self.epochs, self.total_updates, self.last_epoch = make_schedule(
            self.optimizer, self.updates_per_epoch, args.max_steps, **options.schedule_options(args)
        )

    def _resume(self, args: Namespace) -> None:
        """Make the output and the trackers, and go on from a checkpoint if there is one to resume."""
        accelerator, config = self.accelerator, options.as_config(args)
        setup: dict[str, Any] = {
            'mixed_precision': accelerator.mixed_precision,
            'effective_batch': self.effective_batch,
        }
        if accelerator.is_main_process:  # which alone compares and saves it
            setup['data'] = {
                'training': fingerprint(self.task.train_set.source),
                'validation': fingerprint(self.task.val_set.source),
            }
        self.checkpoints = Checkpoints(
            accelerator,
            args.output,
            self.progress,
            config,
            setup,
            self.ema,
            args.checkpoint_hist,
            f'{self.reported}_{self.task.metric}',
        )
        self.checkpoints.begin(args.resume, args.overwrite)
        with one_line_errors(f'log with {args.log_with!r}'):
            accelerator.init_trackers('timm_snn', {name: str(value) for name, value in config.items()})

    def _introduce(self, args: Namespace) -> None:
        task = self.task
        test = f', {len(task.test_set)} test' if task.test_set else ''
        say(
            f'{task.title}: {sum(p.numel() for p in self.model.parameters()):,} parameters, {len(task.class_names)} '
            f'classes; {args.dataset or args.data_dir}: {len(task.train_set)} training, {len(task.val_set)} validation'
            f'{test} samples; effective batch {self.effective_batch} ({self.batch_size} x '
            f'{self.accelerator.num_processes} processes x {self.accumulation} accumulated), lr {self.lr:g}, '
            f'epochs {self.progress.epoch + 1} to {self.epochs}, seed {args.seed}, '
            + device_and_precision(self.accelerator)
            + (' (nothing left to train)' if self.progress.epoch >= self.last_epoch else '')
        )
        if args.warmup_epochs >= args.epochs:
            warmup = f'{args.warmup_epochs} of {args.epochs} epochs'
            say(f'note: the learning rate warms up for {warmup} and never gets there')
        for note in task.notes:
            say(note)

    @property
    def updates_done(self) -> int:
        return self.progress.epoch * self.updates_per_epoch + self.progress.updates

    @property
    def largest_lr(self) -> float:
        return max(group['lr'] for group in self.optimizer.param_groups)


def update(run: DenseRun, batches: Iterable[tuple[Any, Any]]) -> dict[str, Tensor]:
    """Update the weights by the gradients of some batches. Returns the losses of the last one."""
    accelerator = run.accelerator
    run.watch.begin()
    for images, targets in batches:
        with accelerator.accumulate(run.prepared):  # gradients are averaged over processes in the last batch alone
            losses = run.prepared(images, targets)
            loss = torch.stack([*losses.values()]).sum()
            accelerator.backward(loss)
            run.watch.add_loss(loss, len(images))
            if accelerator.sync_gradients:
                run.watch.clip(run.clip_grad or math.inf, dict(tensors_in({'images': images, 'targets': targets})))
            run.optimizer.step()
            run.optimizer.zero_grad()
    return losses


def tensors_in(value: Any, name: str = '') -> Iterator[tuple[str, Tensor]]:
    """The tensors of a batch by their places, as in 'targets.3.boxes'."""
    if isinstance(value, Tensor):
        yield name, value
        return
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, part in items:
        yield from tensors_in(part, f'{name}.{key}' if name else str(key))


def train_epoch(run: DenseRun, epoch: int) -> float:
    """Make the updates that are left of an epoch, or of the run. Returns images per second."""
    progress, accelerator = run.progress, run.accelerator
    run.prepared.train()
    for name in run.freeze:
        run.model.get_submodule(name).eval()  # batch norms keep their statistics
    run.task.train_set.epoch = epoch
    run.train_loader.set_epoch(epoch)
    loader = run.train_loader
    if progress.updates:
        loader = accelerator.skip_first_batches(loader, progress.updates * run.accumulation)
    title = f'epoch {epoch + 1}/{run.epochs}'
    shows = bar(title, run.updates_per_epoch, unit='updates', initial=progress.updates)
    start, seen_before, seconds_before = time.perf_counter(), progress.seen, progress.seconds
    with shows, closing(iter(loader)) as batches:  # ends the processes that load data, however the epoch ends
        while progress.updates < run.updates_per_epoch and run.updates_done < run.total_updates:
            run.scheduler.step_update(run.updates_done)
            run.watch.tell()
            losses = update(run, (next(batches) for _ in range(run.accumulation)))
            run.watch.end()
            must_stop = run.watch.look()
            if run.ema:
                run.ema.update(run.learner, step=run.updates_done)
            shows.update()
            progress.seconds = seconds_before + time.perf_counter() - start
            if progress.updates % LOG_EVERY == 1:
                state = {
                    'loss': run.watch.loss,
                    'images_per_s': (progress.seen - seen_before) / (progress.seconds - seconds_before),
                }
                shows.set_postfix({name: f'{value:.4g}' for name, value in state.items()}, refresh=False)
                parts = {f'loss/{name}': loss.item() for name, loss in losses.items()} if len(losses) > 1 else {}
                more = {'gradient': run.watch.gradient_norm, 'lr': run.largest_lr}
                accelerator.log({**state, **parts, **more}, run.updates_done)
            if must_stop:
                run.checkpoints.save_and_exit(run.stop)
            if run.checkpoint_steps and run.updates_done % run.checkpoint_steps == 0:
                run.checkpoints.save()
        next(batches, None)  # Accelerate notes the end of a loader when it is asked for more
    seconds = progress.seconds - seconds_before
    return (progress.seen - seen_before) / seconds if seconds else 0.0  # nothing was left of the epoch


def measure(run: DenseRun, samples: JointSamples) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The metric over every sample once, and its rows by class. Each process takes its share of the samples.

    Saves and exits when told to stop, or where a sample cannot be read.
    """
    accelerator, processes = run.accelerator, run.accelerator.num_processes
    if processes > 1:  # each has running statistics of its own; those of the first one are saved
        broadcast(list(run.learner.buffers()))
    run.learner.eval()
    metric = run.task.make_metric()
    metric.to(accelerator.device)
    share = Subset(samples, range(accelerator.process_index, len(samples), processes))
    rounds = math.ceil(math.ceil(len(samples) / processes) / run.batch_size)  # as many in every process
    with torch.inference_mode(), closing(run.stop.readable(run.loader_of(share))) as batches:
        for _ in track(range(rounds), 'validate', unit='batches'):
            if run.stop.came_to(accelerator):
                run.checkpoints.save_and_exit(run.stop)
            if (batch := next(batches, None)) is not None:
                images, targets = send_to_device(batch, accelerator.device)
                metric.update(run.learner(images), targets)
    if run.stop.came_to(accelerator):
        run.checkpoints.save_and_exit(run.stop)
    with torch.inference_mode():
        return metric.compute(), metric.by_class


def validate(run: DenseRun) -> dict[str, float]:
    """The columns of summary.csv that begin with eval_ and, of the averaged weights, ema_."""
    metrics = {'eval': measure(run, run.task.val_set)[0]}
    if run.ema:
        with averaged_weights(run.learner, run.ema):
            metrics['ema'] = measure(run, run.task.val_set)[0]
    return {f'{whose}_{name}': value for whose in metrics for name, value in metrics[whose].items()}


def finish(run: DenseRun, args: Namespace, argv: Sequence[str], script: str, seconds: float) -> None:
    """Measure the last weights on the test split, or once more on the validation split, and save all that is left."""
    accelerator, task, progress = run.accelerator, run.task, run.progress
    if run.ema:
        run.learner.load_state_dict(run.ema.module.state_dict())
    samples = task.test_set or task.val_set
    measured, by_class = measure(run, samples)
    score = measured[task.metric]
    document = {'output': args.output, 'model': args.output / 'model', 'seconds': seconds}
    if accelerator.is_main_process:
        with one_line_errors(f'write to --output {args.output}'):
            write_run_summary(run, args.output)  # of an epoch whose checkpoint was saved before a kill
            write_csv(args.output / 'per_class.csv', by_class)
            if task.test_set:
                result = {'split': args.test_split, 'samples': len(samples), **measured}
                write_whole_text(args.output / 'test.json', json.dumps(result, indent=2) + '\n')
            config = options.as_config(args) | {'model': task.title}
            if task.test_set:
                config |= {'val_split': args.test_split, 'max_val_samples': None}
            report = profiled(run, samples)
            row = results_row(
                config,
                argv,
                score=score,
                summary=progress.history[-1],
                processes=accelerator.num_processes,
                device=accelerator.device,
                precision=accelerator.mixed_precision,
                clone=Path(__file__).parents[2],
                is_tested=False,
                metric=task.metric,
                script=script,
                report=report,
            )
            write_csv(args.output / 'results_row.csv', [row], lineterminator='\n')
            run.model.to(memory_format=torch.contiguous_format)  # which safetensors needs
            save(run.model, args.output / 'model', class_names=task.class_names, data_config=task.data_config)
            run.learner.eval()
            task.picture(run.learner, samples, args.output / 'predictions.png')
        say(f'{seconds:.0f} s of training; saved in {args.output}, with predictions.png')
    accelerator.end_training()
    split = args.test_split if task.test_set else args.val_split
    give(
        {task.metric: score, 'split': split, **document, 'measured': measured, 'last_epoch': progress.history[-1]},
        f'{task.label} on {len(samples)} samples of {split}: {score:.2f}',
    )


def profiled(run: DenseRun, samples: JointSamples) -> Report:
    """Operations and energy of the model on some samples, of those that are as large as the first."""
    images = [run.task.collate([samples[i]])[0][0] for i in range(min(PROFILED, len(samples)))]
    alike = torch.stack([image for image in images if image.shape == images[0].shape])
    return profile(run.model, alike.to(run.accelerator.device), batch_size=1)


def training_flop(model: nn.Module, shape: Sequence[int]) -> float:
    """Floating-point operations of one image [C, H, W] in training, counted as for recipes/train.py.

    They are three times those of a forward pass, two per multiply-accumulate.
    """
    with one_line_errors('run the model'):
        image = torch.zeros(1, *shape)
        return 3 * 2 * profile(copy.deepcopy(model).eval(), image, progress=False).total.dense_macs


def load_weights(model: nn.Module, file: Path) -> None:
    """The weights of a whole model, as a run leaves them in model/ and in checkpoints/. Raises: UserError."""
    with one_line_errors(f'start from {file}', '--checkpoint takes the .safetensors of a model like this one'):
        weights = load_file(file)
        check_finite(weights, file)
        if all(name.startswith('model.') for name in weights):  # of a learner, in checkpoints/
            weights = {name.removeprefix('model.'): tensor for name, tensor in weights.items()}
        model.load_state_dict(weights)


def write_run_summary(run: DenseRun, output: Path) -> None:
    label = run.task.label
    write_summary(run.progress.history, output, run.task.metric, f'{label} (%)', label[0].upper() + label[1:])


def run_dense(args: Namespace, argv: Sequence[str], script: str, open_task: OpenTask) -> None:
    """Train what `open_task` makes of the options, of `options.dense_parser` and more.

    `argv` is the command line and `script` the recipe, as in 'recipes/segment.py', for the row of results.
    """
    run = DenseRun(args, open_task)
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
            row = {
                'epoch': epoch,
                'lr': run.largest_lr,
                'train_loss': progress.loss_sum / progress.seen,
                **evaluated,
                'images_per_s': images_per_s,
                **progress.totals(run.task.flop),
            }
            progress.finish_epoch(row)
            if is_whole:
                run.checkpoints.save()
            if accelerator.is_main_process:
                with one_line_errors(f'write to --output {args.output}'):
                    write_run_summary(run, args.output)
            accelerator.log(row, run.updates_done)
            left = run.total_updates - run.updates_done
            pace = (time.perf_counter() - start) / max(1, run.updates_done - updates_before)
            score = row[f'{run.reported}_{run.task.metric}']
            say(
                f'epoch {epoch + 1}/{run.epochs}: training loss {row["train_loss"]:.3f}, {run.task.label} {score:.2f}, '
                f'{images_per_s:.1f} images/s' + (f', {timedelta(seconds=round(left * pace))} left' if left > 0 else '')
            )
            if not is_whole:
                break
    finish(run, args, argv, script, time.perf_counter() - start)
