"""A TimeSformer of the transformers library, imported and evaluated here, has the top-1 that a short script of its own
finds.

The script shares nothing with the package: it reads the annotation file, decodes by PyAV, scales by Pillow, asks
transformers.
"""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TimesformerConfig, TimesformerForVideoClassification

from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.evaluation.evaluate import evaluate_release
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings

FRAMES, SIZE, INTERVAL, OFFSETS, CROPS = 4, 32, 0.25, 2, 3  # seconds between frames; views 2x3


def network(names: list[str]) -> TimesformerForVideoClassification:
    """Random, and such that the patches decide and the predictions differ from clip to clip."""
    torch.manual_seed(0)
    config = TimesformerConfig(
        image_size=SIZE,
        patch_size=8,
        num_frames=FRAMES,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=128,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model = TimesformerForVideoClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(
                    0,
                    0.02 if "embeddings.c" in name or "embeddings.pos" in name else 1.5 * parameter[0].numel() ** -0.5,
                )
        model.classifier.bias -= model(torch.randn(16, FRAMES, 3, SIZE, SIZE)).logits.mean(0)
    return model


def independent_top1(model: TimesformerForVideoClassification, root: Path) -> tuple[float, list[int]]:
    """Top-1 on the validation list, and the classes that were predicted."""
    right, said = [], []
    for line in csv.DictReader((root / "annotations/val.csv").open(encoding="utf-8")):
        stem = f"{line['youtube_id']}_{int(line['time_start']):06d}_{int(line['time_end']):06d}"
        (file,) = root.rglob(f"{stem}.*")
        with av.open(str(file)) as container:
            frames = list(container.decode(video=0))
        times = np.array([frame.time for frame in frames]) - frames[0].time
        slack = max(0.0, len(frames) / 12 - INTERVAL * (FRAMES - 1))
        scores = []
        for offset in (0.25, 0.75):
            wanted = offset * slack + INTERVAL * np.arange(FRAMES)
            shown = [max(0, int(np.searchsorted(times, time + 1e-3, "right")) - 1) for time in wanted]
            small = [frames[place].to_image() for place in shown]
            small = [
                picture.resize((round(picture.width * SIZE / picture.height), SIZE), Image.Resampling.BILINEAR)
                for picture in small
            ]
            for fraction in (0, 0.5, 1):
                left = int((small[0].width - SIZE) * fraction)
                clip = np.stack([np.asarray(picture.crop((left, 0, left + SIZE, SIZE))) for picture in small])
                pixels = (torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
                scores.append(model(pixels[None]).logits.softmax(-1)[0])
        guess = int(torch.stack(scores).mean(0).argmax())
        right.append(model.config.id2label[guess] == line["label"])
        said.append(guess)
    return float(np.mean(right)), said


@pytest.mark.parametrize("workers", [0, 2])
def test_the_top1_is_that_of_an_independent_evaluation(tmp_path: Path, workers: int) -> None:
    catalog = generate(tmp_path / "box", Settings(size=0.2, ssv2=(1, 1), moments=(1, 1), imagenet=(1, 1)), workers=0)
    index(catalog, workers=0)
    manifest = open_manifest(load_catalog(catalog).manifest_path("kinetics", "val"))
    model = network(list(manifest.classes.names))
    model.save_pretrained(tmp_path / "theirs")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours", ImportOptions(head="kinetics"))
    (result,) = evaluate_release(
        tmp_path / "ours", catalog, "val", ["kinetics"], f"{OFFSETS}x{CROPS}", ("plain",), "cpu", workers, 0
    )
    with torch.inference_mode():
        theirs, said = independent_top1(model, catalog.parent / "kinetics_like")
    assert result["top1"] == pytest.approx(theirs)
    assert result["n_read"] == len(said) == 48
    assert len(set(said)) >= 3, "a model that always says the same proves nothing"
