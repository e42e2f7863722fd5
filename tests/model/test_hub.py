"""A model leaves for a folder and comes back the same, from a folder, a run or the Hub's cache, with a card for its
readers.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
import yaml

import cover
from cover import CoVeR
from cover.datasets.manifest import ClassList
from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.heads import Head
from cover.model.release import load_release, save_release, start_from

SHAPE: dict[str, Any] = {"width": 16, "depth": 2, "attention_heads": 2, "patch": 8, "size": 16, "frames": 4}
HEADS = (Head("moves", ("up", "döwn")), Head("things", ("cat", "dog", "cow")))
SETS = {
    "moves": {"media": "video", "sampling": "dense@1.067", "views": "1x3", "class_digest": "?", "train_samples": 12345},
    "things": {"media": "image", "sampling": "segments", "views": "1x1", "class_digest": "?"},
}
METADATA = {"cover": "0.1.0", "step": 70, "frames": 4, "datasets": SETS}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def build(**changes: Any) -> CoVeR:
    """A model whose every parameter is random."""
    model = CoVeR(TimeSformerConfig(**{**SHAPE, **changes}), HEADS, metadata=METADATA)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def front_matter(card: str) -> dict[str, Any]:
    result = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize(
    "changes", [{}, {"time": "additive", "mean": (0.1, 0.2, 0.3), "norm_eps": 1e-5, "layer_scale": 0.1}], ids=str
)
def test_saved_and_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = build(**changes)
    model.save_pretrained(tmp_path / "release")
    result = CoVeR.from_pretrained(tmp_path / "release")
    assert isinstance(result, CoVeR)
    assert (result.config, result.head_list, result.metadata, result.training) == (model.config, HEADS, METADATA, False)
    frames = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    wanted = model(model.normalize(frames), ((1, 4), (1, 1)))
    for name, logits in result(result.normalize(frames), ((1, 4), (1, 1))).items():
        assert torch.equal(logits, wanted[name])
    assert load_release(tmp_path / "release").metadata == METADATA


def test_a_run_is_a_release(trained: Path) -> None:
    model = CoVeR.from_pretrained(str(trained))
    assert model.metadata["step"] == 4
    assert [head.name for head in model.head_list] == ["kinetics", "ssv2", "moments", "imagenet"]
    (card,) = trained.glob("checkpoints/*/README.md")
    assert "| imagenet | " in card.read_text(encoding="utf-8").split("## Training data")[1]
    assert "from random weights" in card.read_text(encoding="utf-8")


def test_the_card(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license" not in front_matter(card)
    assert front_matter(card)["library_name"] == "cover-video"
    assert {"video-classification", "image-classification"} <= set(front_matter(card)["tags"])
    for head in HEADS:
        assert f"| {head.name} | {len(head.classes)} | `{ClassList.of(head.classes, '').digest}` |" in card
    data = card.split("## Training data")[1].split("## ")[0]
    assert "| moves | 12,345 videos | not stated |\n" in data
    assert "things" not in data  # nothing says how many there were
    assert "16 x 16 px, 4 frames" in card


def test_the_lines_of_use_on_the_card_work(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    (code,) = (
        part.split("```")[0] for part in (tmp_path / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    )
    names: dict[str, Any] = {"frames": torch.zeros(4, 3, 16, 16, dtype=torch.uint8)}
    exec(code.replace("FOLDER_OR_HUB_ID", str(tmp_path)), names)
    assert {name: tuple(logits.shape) for name, logits in names["logits"].items()} == {
        "moves": (1, 2),
        "things": (1, 3),
    }


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    build().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("metadata", [{}, {"step": 3}, {"imported": {"weights": "a/b", "format": "timm ViT"}}], ids=str)
def test_a_card_of_little_knowledge(tmp_path: Path, metadata: dict[str, Any]) -> None:
    save_release(tmp_path, CoVeR(TimeSformerConfig(**SHAPE)), metadata)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "no classifier" in card
    assert ("`a/b`" in card) == ("imported" in metadata)


def test_a_start_with_another_number_of_attention_heads(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its network has 2 attention heads, this run's has 4"):
        start_from(CoVeR(TimeSformerConfig(**{**SHAPE, "attention_heads": 4}), HEADS), tmp_path, "keep")


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub library's cache, empty, with no way to the Hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def cached(cache: Path, model: CoVeR, revision: str = "main") -> Path:
    repository = cache / "models--them--moves"
    model.save_pretrained(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_hub_id(cache: Path, revision: str | None) -> None:
    model = build()
    cached(cache, model, revision if revision == "v1" else "main")
    result = CoVeR.from_pretrained("them/moves", revision)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in result.state_dict().items())
    with pytest.raises(UserError, match="not in the Hub's cache"):
        CoVeR.from_pretrained("them/moves", "v2")


def test_offline_and_not_cached(cache: Path) -> None:
    with pytest.raises(UserError, match="them/moves: no such folder here, and it is not in the Hub's cache") as error:
        CoVeR.from_pretrained("them/moves")
    assert "\n" not in str(error.value)


def test_the_switch_that_users_have(tmp_path: Path) -> None:
    cached(tmp_path / "cache", build())
    code = "from cover import CoVeR; print(CoVeR.from_pretrained('them/moves').metadata['step'])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "70\n"), done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("HF_HUB_ETAG_TIMEOUT", "abc", "the environment variable HF_HUB_ETAG_TIMEOUT is 'abc'"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "10s", "the environment variable HF_HUB_DOWNLOAD_TIMEOUT is '10s'"),
        ("ALL_PROXY", "socks5://127.0.0.1:9", "pip install socksio"),
        ("HTTPS_PROXY", "nonsense://x", "proxies in the environment: HTTPS_PROXY"),
        ("HF_ENDPOINT", "no address", "http"),
    ],
)
def test_an_environment_that_the_client_of_the_hub_does_not_take(
    tmp_path: Path, variable: str, value: str, part: str
) -> None:
    own = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = {**own, "HF_HOME": str(tmp_path), variable: value}
    done = commands.run("predict", "owner/model", "x.mp4", env=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert part in line
    assert "cover import-weights owner/model --out FOLDER" in line


@pytest.mark.parametrize("content", ["folder of transformers", "folder of a pickle", "pickle", "safetensors"])
def test_a_checkpoint_of_another_library_is_to_be_imported(tmp_path: Path, content: str) -> None:
    source = tmp_path / {"pickle": "x.pth", "safetensors": "x.safetensors"}.get(content, "theirs")
    if content.startswith("folder"):
        source.mkdir()
        (source / "pytorch_model.bin").write_bytes(b"")
        if content.endswith("transformers"):
            (source / "config.json").write_text('{"model_type": "vit", "backbone": null}')
    else:
        source.write_bytes(b"")
    with pytest.raises(UserError, match=f"cover import-weights {source} --out FOLDER") as error:
        CoVeR.from_pretrained(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./a/b"])
def test_no_such_folder(cache: Path, name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        CoVeR.from_pretrained(name)


def test_nothing_is_unpickled(cache: Path, tmp_path: Path) -> None:
    snapshot = cached(cache, build())
    for name in ("pytorch_model.bin", "model.pkl"):
        (snapshot / name).write_bytes(pickle.dumps(os.mkdir))
    (snapshot / "model.safetensors").write_bytes((snapshot / "pytorch_model.bin").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        CoVeR.from_pretrained("them/moves")


def test_uploading_without_a_way_to_the_hub(cache: Path) -> None:
    with pytest.raises(UserError, match="them/moves: cannot be uploaded: ") as error:
        build().push_to_hub("them/moves")
    assert "\n" not in str(error.value)


def test_the_package_has_it_on_demand(tmp_path: Path) -> None:
    code = "import sys, cover; print('torch' in sys.modules, cover.CoVeR.__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout == "False CoVeR True\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'Cover'"):
        _ = cover.Cover


def test_a_release_is_two_files_and_a_card(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["metadata"] == METADATA
