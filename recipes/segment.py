"""Train a segmenter: a class for every pixel, by a spiking backbone and decoder, or by ordinary ones.

    accelerate launch recipes/segment.py --config recipes/configs/dense/camvid.yaml
    accelerate launch recipes/segment.py --config recipes/configs/dense/camvid.yaml --decoder unet --seed 1
    accelerate launch recipes/segment.py --data-dir STREETS --class-names road car --crop-size 192 192

A config is YAML with the names of the options below, which are those of recipes/train.py where they mean the same; an
option on the command line wins. Data are columns of a Hugging Face data set, --dataset hfds/NAME, or files in
DATA-DIR/SPLIT/images/ and DATA-DIR/SPLIT/masks/ of the same names. A mask is a PNG whose pixels are labels, grey or
with a palette.

In `--output` a run leaves config.yaml, checkpoints/ (for --resume), logs/, summary.csv, curve.png, per_class.csv,
predictions.png, results_row.csv, test.json with --test-split, and model/, a folder for timm_snn.dense.load and
recipes/predict.py.

The mean IoU is that of the last epoch over all pixels but those of --ignore-index, at the size of the masks, whatever
--img-size the model sees. A class that is in no mask and never predicted is left out of the mean.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from timm_snn.dense import create_segmenter
from timm_snn.progress import track
from timm_snn.training import options
from timm_snn.training.data import evenly
from timm_snn.training.dense import DenseTask, load_weights, run_dense, training_flop
from timm_snn.training.dense_data import InMemory, JointSamples, JointTrainingSamples
from timm_snn.training.dense_pictures import labels_of, photo_of, write_masks
from timm_snn.training.errors import UserError, one_line_errors, script
from timm_snn.training.segmentation import SegmentationLearner, SegmentationMetric, class_weights
from timm_snn.training.segmentation_data import Masks, collate, open_masks, transform_to_evaluate, transform_to_train

PICTURED = 4  # samples


def open_task(args: Namespace) -> DenseTask:
    """The model and the data that the options name, and how they are measured."""
    names = args.class_names or [str(label) for label in range(args.num_classes or 0)]
    if not names:
        raise UserError('masks have numbers and no names: pass --class-names NAME ..., or --num-classes N')
    with one_line_errors(f'create a segmenter with the backbone {args.backbone!r}'):
        model: Any = create_segmenter(args.backbone, len(names), **options.segmenter_options(args))
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    mean, std = (tuple(getattr(args, key) or model.pretrained_cfg[key]) for key in ('mean', 'std'))

    def open_split(split: str, number: int | None, **masks: Any) -> tuple[Any, Sequence[int]]:
        size = args.img_size and tuple(args.img_size)
        source: Masks = open_masks(
            args.dataset,
            args.data_dir,
            split,
            (args.input_key, args.target_key),
            classes=names,
            ignore_index=args.ignore_index,
            grey=args.in_chans == 1,
            size=size,
            **masks,
        )
        indices = evenly(range(len(source)), number)
        return InMemory(source, indices, args.data_in_memory), indices

    train_set = JointTrainingSamples(
        *open_split(args.train_split, args.max_train_samples),
        args.seed,
        transform_to_train(mean, std, **options.mask_augmentation_options(args)),
    )
    evaluated = transform_to_evaluate(mean, std)
    val_set = JointSamples(*open_split(args.val_split, args.max_val_samples, resize_masks=False), evaluated)
    test_set = None
    if args.test_split:
        test_set = JointSamples(*open_split(args.test_split, None, resize_masks=False), evaluated)
    weights = None
    if args.balance:
        masks = (train_set.source[index][1] for index in track(train_set.indices, 'count labels', unit='masks'))
        with one_line_errors('count the labels of the training split'):
            weights = class_weights(masks, len(names), args.ignore_index, args.balance)
    with one_line_errors('read the first sample'):
        height, width = val_set[0][0].shape[1:]
    return DenseTask(
        name='segmentation',
        title=f'{args.backbone} + {args.decoder}',
        learner=SegmentationLearner(model, args.ignore_index, args.dice, weights),
        model=model,
        train_set=train_set,
        val_set=val_set,
        test_set=test_set,
        collate=collate,
        make_metric=partial(SegmentationMetric, names, args.ignore_index),
        metric='mean_iou',
        label='mean IoU',
        picture=partial(draw, names=names, mean=mean, std=std),
        class_names=names,
        data_config={'input_size': (args.in_chans, height, width), 'mean': mean, 'std': std},
        flop=training_flop(model, (args.in_chans, *(args.crop_size or (height, width)))),
    )


@torch.inference_mode()
def draw(
    learner: nn.Module,
    samples: JointSamples,
    file: Path,
    *,
    names: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Some pictures, evenly spread, with their true and their predicted labels."""
    device = next(learner.parameters()).device
    rows = []
    for number in evenly(range(len(samples)), PICTURED):
        image, mask = samples[number]
        _, labels = labels_of(learner(image[None].to(device))[0], mask.shape)
        rows.append((photo_of(image, mean, std), mask.numpy(), labels.cpu().numpy()))
    write_masks(rows, names, file)


@script(kept='the newest checkpoint stays', to_go_on=('--resume', 'auto'))
def main(argv: Sequence[str] | None = None) -> None:
    args = options.segmentation_options(argv, __doc__)
    run_dense(args, sys.argv[1:] if argv is None else argv, 'recipes/segment.py', open_task)


if __name__ == '__main__':
    main()
