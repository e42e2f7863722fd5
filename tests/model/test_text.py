"""Text networks: classes of any name, as transformers' own zero-shot pipeline answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from cover.cli import main
from cover.errors import UserError
from cover.inference.predictor import Predictor
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, read_config, start_from
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights
from cover.model.text import TextEncoder

WORDS = ["<pad>", "<end>", "<unk>", "<start>", "this", "is", "a", "photo", "of", "video", "cat", "dog", "horse"]
WORDS += ["riding", "archery", ".", "some", "one"]
NAMES = ("cat", "riding_horse", "Archery", "some one of a dog")
IMAGE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
VISION = {**IMAGE, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
TEXT |= {
    "vocab_size": len(WORDS),
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 3,
}


def randomised(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = name.endswith("weight") and parameter.ndim == 1
            parameter.normal_(1.0 if scale else 0.0, 0.2, generator=generator)
        module.logit_scale.fill_(3.0)
    return module.eval()


def tokenizer_of(clip: bool) -> tf.PreTrainedTokenizerFast:
    """A tokenizer of whole words, with the marks at the ends that the family has."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.normalizer = normalizers.Lowercase()
    ends = "<start> $A <end>" if clip else "$A <end>"
    marks = [(word, WORDS.index(word)) for word in ("<start>", "<end>")]
    words.post_processor = processors.TemplateProcessing(single=ends, special_tokens=marks)
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<end>",
        model_input_names=["input_ids", "attention_mask"] if clip else ["input_ids"],
        model_max_length=64,
    )


FAMILIES = {
    "clip": lambda: tf.CLIPModel(tf.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=20)),
    "siglip": lambda: tf.SiglipModel(
        tf.SiglipConfig(vision_config=VISION, text_config={**TEXT, "projection_size": 32})
    ),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """The family, transformers' pipeline, and our release of the same weights."""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    model, tokenizer = randomised(FAMILIES[family]()), tokenizer_of(family == "clip")
    size = {"height": 32, "width": 32}
    kind = tf.CLIPImageProcessorPil if family == "clip" else tf.SiglipImageProcessorPil
    processor = kind(size=size, crop_size=size, image_mean=[0.5] * 3, image_std=[0.4] * 3)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder / "theirs")
    import_weights(str(folder / "theirs"), folder / "ours", ImportOptions(text=True))
    pipeline = tf.pipeline(
        "zero-shot-image-classification", model=model, tokenizer=tokenizer, image_processor=processor, device="cpu"
    )
    return family, pipeline, folder / "ours"


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8))


def theirs_of(pipeline: Any, picture: np.ndarray, prompt: str) -> dict[str, float]:
    texts = [prompt.replace("{}", name.replace("_", " ")) for name in NAMES]
    answers = pipeline(Image.fromarray(picture), candidate_labels=texts, hypothesis_template="{}")
    return {answer["label"]: answer["score"] for answer in answers}


@pytest.mark.parametrize("prompt", [None, "a video of {}"])
def test_the_answers_of_transformers(both: tuple[str, Any, Path], prompt: str | None) -> None:
    _, pipeline, ours = both
    predictor = Predictor.load(ours, classes=NAMES, prompt=prompt)
    for picture in pictures(3):
        result = predictor(picture)["classes"]
        shown = prompt or "This is a photo of {}."
        wanted = theirs_of(pipeline, picture, shown)
        assert result.classes == NAMES
        scores = [wanted[shown.replace("{}", name.replace("_", " "))] for name in NAMES]
        np.testing.assert_allclose(result.scores, scores, atol=1e-5)
        assert np.ptp(result.scores) > 3e-3


def test_a_text_that_is_too_long_is_cut(both: tuple[str, Any, Path]) -> None:
    _, pipeline, ours = both
    text = " ".join(NAMES * 20)
    tokens = pipeline.tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
    with torch.inference_mode():
        wanted = pipeline.model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(TextEncoder(ours)([text]), nn.functional.normalize(wanted), atol=1e-5, rtol=1e-5)


def test_new_heads_start_from_their_texts(both: tuple[str, Any, Path]) -> None:
    """A linear head has the logits of the zero-shot one, without their mean and up to the length of the embedding."""
    _, _, ours = both
    config = read_config(ours)
    model = CoVeR(config.backbone, (Head("mine", NAMES),))
    assert "new heads, starting from the texts of their classes: mine" in start_from(
        model, ours, "keep", "a photo of {}"
    )
    reference = Predictor.load(ours, classes=NAMES, prompt="a photo of {}").model
    frames = model.normalize(torch.from_numpy(np.stack(pictures(6))).permute(0, 3, 1, 2))
    with torch.inference_mode():
        logits = model.eval()(frames, ((6, 1),))["mine"]
        wanted = reference(frames, ((6, 1),))["classes"]
    wanted = wanted - wanted.mean(1, keepdim=True)
    ratio = (logits * wanted).sum(1) / (wanted * wanted).sum(1)
    torch.testing.assert_close(logits, wanted * ratio[:, None], atol=1e-4, rtol=1e-4)
    assert 0.5 < float(ratio.min()) <= float(ratio.max()) < 2


def test_the_commands(both: tuple[str, Any, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, _, ours = both
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    common = ["predict", str(ours), str(tmp_path / "a.png"), "--format", "jsonl", "--classes"]
    assert main([*common, str(tmp_path / "names.txt"), "--prompt", "a {}"]) == 0
    row = json.loads(capfd.readouterr().out)
    assert {name for name, _ in row["heads"]["classes"]} == set(NAMES)
    assert (row["protocol"]["classes"], row["protocol"]["prompt"]) == (list(NAMES), "a {}")
    for names, part in (("cat, cat", "each once"), (" , ", "names no class")):
        assert main([*common, names]) == 2
        assert part in capfd.readouterr().err
    assert main([*common, "cat", "--prompt", "a photo"]) == 2
    assert "write {} once" in capfd.readouterr().err


def test_what_is_missing_is_named(
    both: tuple[str, Any, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, ours = both
    theirs = ours.parent / "theirs"
    import_weights(str(theirs), tmp_path / "plain", ImportOptions())
    with pytest.raises(UserError, match=r"has no text network.*--text"):
        Predictor.load(tmp_path / "plain", classes=("cat",))
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((theirs / name).read_bytes())
    assert main(["import-weights", str(tmp_path / "bare"), "--text", "--out", str(tmp_path / "new")]) == 2
    assert "tokenizer.json is missing" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install .*\[text\]"):
        Predictor.load(ours, classes=("cat",))


def test_a_release_with_texts_is_a_release(both: tuple[str, Any, Path]) -> None:
    _, _, ours = both
    assert load_release(ours).head_list == ()
