"""Fine-tune shipped weights with transformers' Trainer: garments become digits, offline, on a CPU.

    python recipes/finetune_with_trainer.py --output output/trainer
    python recipes/finetune_with_trainer.py --images FOLDER --output output/trainer     pictures in FOLDER/SPLIT/CLASS/

The model is transformers' TimmWrapperForImageClassification, its processor does what timm's transform does, and
OUTPUT/model loads with AutoModelForImageClassification, in a pipeline, and by timm.create_model('local-dir:...').

evaluate.load('accuracy') fetches the code of its metrics from the Hub; where that cannot be reached, scikit-learn's
accuracy_score, which it is a shell of, is called instead, and a line says so. `timm-snn train` has what a run of weeks
needs, and of models of events.

The two epochs of the first command end at 95.00 % of 360 held-out digits, with seed 0 and one thread.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import timm
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset
from huggingface_hub.errors import HTTPError
from PIL import Image as Pictures
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

from timm_snn.models import save_for_hf
from timm_snn.training.console import give, note
from timm_snn.training.errors import one_line_errors, script
from timm_snn.training.options import ArgumentParser

WEIGHTS = 'msvit_4_96.fashion_mnist'


def open_digits() -> DatasetDict:
    """scikit-learn's 1797 digits of 8 x 8, of which every fifth is held out."""
    digits = load_digits()
    features = Features(image=Image(), label=ClassLabel(names=[str(i) for i in range(10)]))
    parts = {}
    for split, is_wanted in (('train', lambda i: i % 5), ('validation', lambda i: not i % 5)):
        kept = [i for i in range(len(digits.images)) if is_wanted(i)]
        images = [Pictures.fromarray((digits.images[i] * 255 / 16).astype(np.uint8)).convert('RGB') for i in kept]
        parts[split] = Dataset.from_dict({'image': images, 'label': digits.target[kept]}, features)
    return DatasetDict(parts)


def open_pictures(folder: Path) -> DatasetDict:
    """FOLDER/train/CLASS/ and FOLDER/validation/CLASS/."""
    with one_line_errors(f'read pictures of {folder}', 'expected FOLDER/train/CLASS/ and FOLDER/validation/CLASS/'):
        data = load_dataset('imagefolder', data_dir=str(folder))
        if not {'train', 'validation'} <= data.keys():
            raise ValueError(f'it has the splits {", ".join(data)}')
        return data.cast_column('image', Image(mode='RGB'))


def accuracy_metric() -> Callable[[Any], dict[str, float]]:
    """evaluate's accuracy, or scikit-learn's where the Hub does not answer."""
    try:
        metric = evaluate.load('accuracy')
    except (OSError, HTTPError) as error:  # also what it says of a Hub that it does not reach
        note(f'note: accuracy is that of scikit-learn, as evaluate cannot load its own: {" ".join(str(error).split())}')
        return lambda out: {'accuracy': float(accuracy_score(out.label_ids, out.predictions.argmax(-1)))}
    return lambda out: metric.compute(predictions=out.predictions.argmax(-1), references=out.label_ids)


def open_base(folder: Path, label_names: Sequence[str]) -> tuple[Any, Any]:
    """The shipped weights with a new classifier, adapted to three channels, and their image processor."""
    base: Any = timm.create_model(WEIGHTS, pretrained=True, in_chans=3, num_classes=len(label_names))
    base.pretrained_cfg['label_names'] = list(label_names)
    # the statistics and the size that the first channel was trained with
    data = {'input_size': (3, 32, 32), 'mean': base.pretrained_cfg['mean'] * 3, 'std': base.pretrained_cfg['std'] * 3}
    save_for_hf(base, folder, {'label_names': list(label_names)}, data_config=data)
    return AutoModelForImageClassification.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)


@script(kept='OUTPUT holds the checkpoint of the last epoch that ended')
def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser('recipes/finetune_with_trainer.py', __doc__)
    add = parser.add_argument
    add('--images', type=Path, metavar='FOLDER', help="default: scikit-learn's digits")
    add('--output', type=Path, required=True, help='for checkpoints, and the model in OUTPUT/model')
    add('--epochs', type=float, default=2)
    add('--lr', type=float, default=8e-3, help='larger than usual, for Muon left the weights large')
    add('--batch-size', type=int, default=64)
    add('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    data = open_pictures(args.images) if args.images else open_digits()
    model, processor = open_base(args.output / 'base', data['train'].features['label'].names)

    def prepare(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return {'pixel_values': processor(rows['image'])['pixel_values'], 'labels': rows['label']}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(args.output / 'checkpoints'),
            num_train_epochs=args.epochs,
            learning_rate=args.lr,
            lr_scheduler_type='cosine',
            warmup_steps=5,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            eval_strategy='epoch',
            save_strategy='epoch',
            save_total_limit=1,
            remove_unused_columns=False,  # `prepare` makes the model's columns of them
            report_to='none',
            seed=args.seed,
        ),
        train_dataset=data['train'].with_transform(prepare),
        eval_dataset=data['validation'].with_transform(prepare),
        compute_metrics=accuracy_metric(),
        processing_class=processor,
    )
    trainer.train()
    accuracy = trainer.evaluate()['eval_accuracy']
    folder = args.output / 'model'
    trainer.save_model(str(folder))

    images = [row['image'] for row in data['validation'].select(range(4))]
    pixels = processor(images)['pixel_values']
    with torch.inference_mode():
        logits = AutoModelForImageClassification.from_pretrained(folder).eval()(pixels).logits
        same = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()(pixels)
    torch.testing.assert_close(same, logits)
    answers = [answer[0]['label'] for answer in pipeline('image-classification', model=str(folder))(images)]
    give(
        {'accuracy': accuracy, 'folder': folder, 'answers': answers},
        f'accuracy {100 * accuracy:.2f} % on {len(data["validation"])} held-out pictures; {folder} answers the same '
        f'in transformers and timm, and calls the first four {", ".join(answers)}',
    )


if __name__ == '__main__':
    main()
