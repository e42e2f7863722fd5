"""A server of several models, and one for which clients type class names: its answers are the Predictor's."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from cover.errors import UserError
from cover.inference.predictor import Predictions, Predictor
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.model.text import TextConfig, TextEncoder, TextNetwork, save_text
from cover.serve.app import make_app, page_text
from cover.serve.middleware import Batching, Limits
from cover.serve.responses import PredictResponse
from cover.serve.server import model_names, uvicorn_config
from cover.serve.service import PredictQuery, Service
from cover.serve.uploads import UploadFolder

uvicorn = pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)
WORDS = ["<pad>", "<unk>", "this", "is", "a", "photo", "of", ".", "cat", "dog", "horse", "clip"]
TEXT = TextConfig("clip", 16, 1, 2, 24, len(WORDS), 16, 12, 32, True, "gelu_quick", 1e-5)
SETS = {"ssv2": {"sampling": "segments", "views": "1x3", "train_samples": 1234}}
ODD = "</script><b>"


def randomised(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.4, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases with a head of the same name, one that has a text network and no head, and a picture."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, classes) in enumerate({"first": "abc", "second": "abcd", "clip": ""}.items()):
        heads = (Head("ssv2", tuple(classes)),) if classes else ()
        model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=16), heads)
        randomised(model, seed)
        save_release(folder / name, model, {"step": 7, "frames": 2, "datasets": SETS if classes else {}})
    network = TextNetwork(TEXT)
    randomised(network, 9)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "words.json"))
    save_text(folder / "clip", network, folder / "words.json")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    first, *others = (Predictor.load(folder / name) for name in ("first", "second", "clip"))
    more = [(ODD, others[0], None), ("clip", others[1], TextEncoder(folder / "clip"))]
    limits, uploads = Limits(deadline_s=60, decode_s=60), UploadFolder(folder)
    with closing(Service(first, limits, Batching(), 1, uploads, "first", None, more)) as service:
        yield service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    config = uvicorn_config(make_app(service, page=True), service.limits, "127.0.0.1", 0)
    server, line = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([line],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{line.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def ask(url: str, route: str, file: Path | None = None, **query: Any) -> tuple[int, Any]:
    address = f"{url}{route}?{urllib.parse.urlencode(query, doseq=True)}"
    request = urllib.request.Request(address, file.read_bytes() if file else None, {"content-type": "image/png"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def check(answer: dict[str, Any], wanted: Predictions) -> None:
    assert list(answer["heads"]) == list(wanted)
    for head, prediction in wanted.items():
        names, scores = zip(*prediction.top(5), strict=True)
        assert [guess["name"] for guess in answer["heads"][head]] == list(names)
        assert [guess["probability"] for guess in answer["heads"][head]] == pytest.approx(scores, abs=1e-5)


def test_each_model_answers_for_itself(url: str, folder: Path) -> None:
    for name, checkpoint in {"": "first", "first": "first", ODD: "second"}.items():
        status, answer = ask(url, "/v1/predict", folder / "photo.png", model=name)
        assert status == 200, answer
        check(answer, Predictor.load(folder / checkpoint)(folder / "photo.png"))
        assert list(ask(url, "/v1/model", model=name)[1]["ssv2"]) == list("abc" if checkpoint == "first" else "abcd")
    status, answer = ask(url, "/v1/explain", folder / "photo.png", model=ODD, head="ssv2", **{"class": "d"})
    assert (status, answer["name"]) == (200, "d")
    for route in ("/v1/predict", "/v1/model"):
        status, answer = ask(url, route, folder / "photo.png" if route == "/v1/predict" else None, model="frist")
        assert (status, "frist" in answer["error"]) == (422, True)


def test_the_models_are_described(url: str) -> None:
    first, second, clip = ask(url, "/v1/models")[1]
    assert [each["name"] for each in (first, second, clip)] == ["first", ODD, "clip"]
    assert first["heads"] == {"ssv2": {"classes": 3, "datasets": {"ssv2": 1234}, "multi_label": False}}
    assert (first["text"], clip["text"], clip["heads"]) == (False, True, {})
    assert (first["network"], first["pixels"], first["frames"], first["step"]) == ("timesformer", 16, 2, 7)


def test_the_page_names_them_and_no_name_is_markup(service: Service) -> None:
    text = page_text([model.describe() for model in service.models.values()])
    assert text.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;" in text  # in its title
    data = text.split('id="model-data">')[1].split("</script>")[0]
    assert [each["name"] for each in json.loads(data)] == ["first", ODD, "clip"]


def test_the_head_that_answers_where_none_is_named(folder: Path, tmp_path: Path) -> None:
    heads = (Head("start", ("a", "b")), Head("own", ("c", "d")))
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=16), heads)
    sets = {head.name: SETS["ssv2"] for head in heads}
    save_release(tmp_path / "own", model, {"frames": 2, "datasets": sets, "default_head": "own"})
    limits, uploads = Limits(deadline_s=60, decode_s=60), UploadFolder(tmp_path)
    with closing(Service(Predictor.load(tmp_path / "own"), limits, Batching(), 1, uploads)) as service:
        answers = [
            asyncio.run(service.predict(folder / "photo.png", PredictQuery(names)))
            for names in ((), ("start",), ("start", "own"))
        ]
        description = service.first.describe()
    assert [list(answer.heads) for answer in answers] == [["own"], ["start"], ["start", "own"]]
    assert (list(description.heads), description.default_heads) == (["start", "own"], ["own"])


@pytest.mark.parametrize("prompt", ["", "a clip of {}"])
def test_typed_classes(url: str, folder: Path, prompt: str) -> None:
    classes = ("cat", "dog", "a horse")
    query = {"model": "clip", "classes": classes, **({"prompt": prompt} if prompt else {})}
    for _ in range(2):  # the second time their embeddings are kept
        status, answer = ask(url, "/v1/predict", folder / "photo.png", **query)
        assert status == 200, answer
        wanted = Predictor.load(folder / "clip", classes=classes, prompt=prompt or None)
        check(answer, wanted(folder / "photo.png"))


def test_typed_files_that_wait_for_the_model_are_few(folder: Path) -> None:
    """Their pixels are in memory, so no more than `workers` files are decoded while the model is busy."""

    async def three_at_once(service: Service) -> list[PredictResponse]:
        query, free = PredictQuery(classes=("cat", "dog")), threading.Event()
        service.first.batcher.put_alone(free.wait, time.monotonic() + 60)
        requests = [asyncio.ensure_future(service.predict(folder / "photo.png", query)) for _ in range(3)]
        while not decoded(service):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert decoded(service) == 1
        free.set()
        return await asyncio.gather(*requests)

    model, uploads = Predictor.load(folder / "clip"), UploadFolder(folder)
    limits, encoder = Limits(deadline_s=60, decode_s=60), TextEncoder(folder / "clip")
    with closing(Service(model, limits, Batching(), 1, uploads, "clip", encoder)) as service:
        first, *others = asyncio.run(three_at_once(service))
        assert others == [first, first]


def decoded(service: Service) -> int:
    match = re.search(r'cover_stage_seconds_count\{stage="decode"\} (\d+)', service.metrics.render()[0].decode())
    return int(match[1]) if match else 0


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ({"model": "clip"}, "name the classes"),
        ({"classes": ["cat"]}, "no text network"),
        ({"model": "clip", "classes": ["cat", "cat"]}, "each once"),
        ({"model": "clip", "classes": ["cat", " "]}, "each once"),
        ({"model": "clip", "classes": ["cat"], "prompt": "no place"}, "{}"),
        ({"prompt": "a {}"}, "goes with classes"),
        ({"model": "clip", "classes": ["cat"], "head": "ssv2"}, "ssv2"),
        ({"model": "clip", "classes": ["x" * 101]}, "classes"),
        ({"model": "clip", "classes": [str(n) for n in range(101)]}, "classes"),
    ],
    ids=str,
)
def test_wrong_classes(url: str, folder: Path, query: dict[str, Any], part: str) -> None:
    status, answer = ask(url, "/v1/predict", folder / "photo.png", **query)
    assert (status, part in answer["error"]) == (422, True), answer


def test_names_of_checkpoints(tmp_path: Path) -> None:
    for name in ("a/release", "b/release", "c"):
        (tmp_path / name).mkdir(parents=True)
    paths = [tmp_path / name for name in ("a/release", "c", "b/release")]
    assert model_names([*paths, "me/moves"]) == ["a/release", "c", "b/release", "me/moves"]
    with pytest.raises(UserError, match="given twice"):
        model_names([paths[0], paths[1], paths[0]])
