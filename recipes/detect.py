"""Train a detector: boxes with classes, by RetinaNet or Faster R-CNN of torchvision on a spiking backbone.

    accelerate launch recipes/detect.py --config recipes/configs/dense/bccd.yaml
    accelerate launch recipes/detect.py --config recipes/configs/dense/bccd.yaml --backbone resnet18 --seed 1
    accelerate launch recipes/detect.py --data-dir STREETS --detector faster_rcnn --img-size 480 640

A config is YAML with the names of the options below, which are those of recipes/train.py where they mean the same; an
option on the command line wins. Data are columns of a Hugging Face data set, --dataset hfds/NAME: an image, and its
objects, with the lists bbox and category. Or they are a folder in COCO's format, --data-dir DATA, with the boxes in
annotations/instances_SPLIT.json, SPLIT/_annotations.coco.json or SPLIT.json.

In `--output` a run leaves config.yaml, checkpoints/ (for --resume), logs/, summary.csv, curve.png, per_class.csv,
predictions.png, results_row.csv, test.json with --test-split, and model/, a folder for timm_snn.dense.load and
recipes/predict.py.

mAP50 is COCO's average precision at an IoU of 0.5, the mean over classes, of the last epoch. Boxes are compared in
pictures of --img-size, which their IoU does not depend on.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

from timm_snn.dense import create_detector, fpn_backbone
from timm_snn.training import options
from timm_snn.training.box_pictures import draw_samples
from timm_snn.training.data import evenly, summary
from timm_snn.training.dense import DenseTask, load_weights, run_dense
from timm_snn.training.dense_data import InMemory, JointSamples, JointTrainingSamples
from timm_snn.training.detection import BoxTransform, MeanAveragePrecision, anchor_sizes, collate
from timm_snn.training.detection_data import BoxedPictures, open_boxes
from timm_snn.training.errors import UserError, one_line_errors, script


def open_task(args: Namespace) -> DenseTask:
    """The detector and the data that the options name, and how they are measured."""
    size = tuple(args.img_size)
    splits = [args.train_split, args.val_split, *([args.test_split] if args.test_split else [])]
    numbers = [args.max_train_samples, args.max_val_samples, None]
    data = [open_split(args, split) for split in splits]
    names = data[0].classes
    for split, found in zip(splits, data, strict=True):
        if found.classes != names:
            raise UserError(
                f'the splits have different classes, {summary(names)} in {splits[0]!r} and {summary(found.classes)} in '
                f'{split!r}: labels would not agree; --class-names says what they are'
            )
    make_metric = partial(MeanAveragePrecision, names)
    make_metric()  # so that a library that is missing is not missed after an epoch
    model, note = make_detector(args, data[0])
    if args.checkpoint:
        load_weights(model, args.checkpoint)
    mean, std = (tuple(getattr(args, key) or model.pretrained_cfg[key]) for key in ('mean', 'std'))
    model.pretrained_cfg.update(mean=mean, std=std)  # by which the model normalises
    chosen = [evenly(range(len(found)), number) for found, number in zip(data, numbers, strict=False)]
    sources = [InMemory(found, indices, args.data_in_memory) for found, indices in zip(data, chosen, strict=True)]
    augmented = BoxTransform(size, mean, **options.box_augmentation_options(args))
    train_set = JointTrainingSamples(sources[0], chosen[0], args.seed, augmented)
    evaluated = [JointSamples(*part, BoxTransform(size)) for part in zip(sources[1:], chosen[1:], strict=True)]
    return DenseTask(
        name='detection',
        title=f'{args.backbone} + {args.neck} + {args.detector}',
        learner=model,
        model=model,
        train_set=train_set,
        val_set=evaluated[0],
        test_set=evaluated[1] if args.test_split else None,
        collate=collate,
        make_metric=make_metric,
        metric='map50',
        label='mAP50',
        picture=partial(draw_samples, class_names=names),
        class_names=names,
        data_config={'input_size': (args.in_chans, *size), 'mean': mean, 'std': std},
        notes=[note],
    )


def open_split(args: Namespace, split: str) -> BoxedPictures:
    return open_boxes(
        args.dataset,
        args.data_dir,
        split,
        (args.input_key, args.target_key),
        box_format=args.box_format,
        grey=args.in_chans == 1,
        class_names=args.class_names,
        num_classes=args.num_classes,
    )


def make_detector(args: Namespace, data: BoxedPictures) -> tuple[Any, str]:
    """The detector, with anchors as the options say or as the boxes to train on ask for, and a note of these."""
    sizes: Any
    with one_line_errors(f'create a detector with the backbone {args.backbone!r}'):
        strides = fpn_backbone(args.backbone, **options.pyramid_options(args)).strides
        if args.anchor_sizes:
            sizes = spread(args.anchor_sizes, len(strides))
        else:
            sizes = anchor_sizes(data, args.img_size, len(strides))
        model = create_detector(args.backbone, len(data.classes), anchor_sizes=sizes, **options.detector_options(args))
    levels = ', '.join(
        f'{" ".join(f"{side:g}" for side in level)} at stride {stride}'
        for level, stride in zip(sizes, strides, strict=True)
    )
    return model, f'anchors in pixels: {levels}'


def spread(sizes: Sequence[float], levels: int) -> list[Sequence[float]]:
    """As many sizes for each level. Raises: UserError unless that is possible."""
    if len(sizes) % levels:
        raise UserError(f'{len(sizes)} --anchor-sizes cannot be spread over {levels} levels: expected as many for each')
    each = len(sizes) // levels
    return [sizes[i : i + each] for i in range(0, len(sizes), each)]


@script(kept='the newest checkpoint stays', to_go_on=('--resume', 'auto'))
def main(argv: Sequence[str] | None = None) -> None:
    args = options.detection_options(argv, __doc__)
    run_dense(args, sys.argv[1:] if argv is None else argv, 'recipes/detect.py', open_task)


if __name__ == '__main__':
    main()
