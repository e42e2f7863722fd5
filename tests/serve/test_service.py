"""A server's answers are the Predictor's own, whoever shares the forward pass; what is wrong with a request is one line
of JSON.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import http.client
import io
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cover.inference.explain import ExplainOptions, explanations
from cover.inference.predictor import Predictor
from cover.media.sampling import Views
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.serve.app import make_app
from cover.serve.batching import Batcher
from cover.serve.decoding import DecodeRequest, Decoders
from cover.serve.middleware import MEGABYTE, Batching, Limits, Refused
from cover.serve.server import KEEP_ALIVE_S, uvicorn_config
from cover.serve.service import ExplainQuery, Service
from cover.serve.uploads import UploadFolder

uvicorn = pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)

LIMITS = Limits(
    body=2 * MEGABYTE,
    upload_s=2,
    ignored=8 * MEGABYTE,
    seconds=20,
    pixels=1_000_000,
    decode_s=5,
    deadline_s=20,
    queue=40,
    explanations=16,
)
HEADS = (
    Head("ssv2", tuple("abcdefg")),
    Head("kinetics", tuple("uvwxyz")),
    Head("tags", ("sun", "rain"), loss="sigmoid"),
)
SETS = {
    "ssv2": {"sampling": "segments", "views": "1x3"},
    "kinetics": {"sampling": "dense@0.1", "views": "2x3"},
    "tags": {"sampling": "segments", "views": "1x1"},
}


# --- what is served, and to whom


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose weights are random, but such that what is seen matters; clips and images beside it."""
    folder = tmp_path_factory.mktemp("serve")
    model = CoVeR(TimeSformerConfig(width=32, depth=2, attention_heads=2, patch=8, size=16), HEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
    save_release(folder / "release", model, {"step": 1, "frames": 4, "datasets": SETS})
    for number in range(4):
        write_clip(folder / f"{number}.mp4", number)
        pixels = np.random.default_rng(number).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


def write_clip(path: Path, seed: int, count: int = 20, rate: int = 10) -> None:
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height = 64, 48
        for _ in range(count):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@dataclass
class Server:
    """A service that listens on a port of this machine."""

    service: Service
    port: int

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """One request on a connection of its own: status and answer, read as JSON where it is."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if response.headers["content-type"] == "application/json" else text

    def send(self, body: bytes, query: str = "", kind: str = "application/octet-stream") -> tuple[int, Any]:
        """A file as it is."""
        return self.ask("POST", f"/v1/predict{query}", body, {"content-type": kind})

    def explain(self, body: bytes, query: str) -> tuple[int, Any]:
        """What a head's answer to a file rests on."""
        return self.ask("POST", f"/v1/explain{query}", body, {"content-type": "application/octet-stream"})

    def begin(self, length: int, sent: bytes = b"", path: str = "/v1/predict") -> socket.socket:
        """An upload of which only a beginning comes."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: video/mp4\r\ncontent-length: {length}\r\n\r\n"
        line.sendall(head.encode() + sent)
        return line

    def files(self) -> list[str]:
        """What lies in its folder of uploads."""
        return [path.name for path in self.service.uploads.folder.iterdir() if path.name != "lock"]


@contextmanager
def serving(service: Service, **options: Any) -> Iterator[Server]:
    app = make_app(service, **options)
    config = uvicorn_config(app, service.limits, "127.0.0.1", 0)
    server, line = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([line],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Server(service, line.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder / "release")


@pytest.fixture(scope="module")
def service(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with closing(
        Service(
            predictor,
            LIMITS,
            Batching(frames=48, wait_s=0.02),
            2,
            UploadFolder(tmp_path_factory.mktemp("spool")),
            "<b>cotrain",
        )
    ) as service:
        yield service
    assert not service.uploads.folder.exists()


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[Server]:
    with serving(service, page=True) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test of a server: no upload lies about, none is counted as under way."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        wait_until(lambda: server.files() == [] and server.service.under_way == 0)


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.01)


def form(data: bytes, name: str = "clip.mp4", field: str = "file", times: int = 1) -> tuple[bytes, dict[str, str]]:
    part = (
        f'--edge\r\ncontent-disposition: form-data; name="{field}"; '
        f'filename="{name}"\r\ncontent-type: text/html\r\n\r\n'
    ).encode()
    return (part + data + b"\r\n") * times + b"--edge--\r\n", {"content-type": "multipart/form-data; boundary=edge"}


def check_heads(heads: dict[str, Any], wanted: dict[str, Any], top: int = 5) -> None:
    assert list(heads) == list(wanted)
    for head, prediction in wanted.items():
        names, shares = zip(*prediction.top(top))
        assert [guess["name"] for guess in heads[head]] == list(names)
        assert [guess["probability"] for guess in heads[head]] == pytest.approx(shares, abs=1e-6)


# --- answers


def test_a_prediction_that_is_not_finite_is_refused_for_that_file(folder: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(folder / "release")
    with torch.no_grad():
        for parameter in predictor.model.backbone.norm.parameters():  # type: ignore[union-attr]
            parameter.fill_(3e38)
    with (
        closing(Service(predictor, LIMITS, Batching(), 1, UploadFolder(tmp_path))) as service,
        serving(service) as server,
    ):
        head = next(iter(service.first.heads))
        data = (folder / "0.png").read_bytes()
        for status, answer in (server.send(data), server.explain(data, f"?head={head}")):
            assert status == 422
            assert "not finite" in json.dumps(answer)


@pytest.mark.parametrize("name", ["0.mp4", "0.png"])
def test_an_answer_is_the_predictors_own(server: Server, predictor: Predictor, folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    status, answer = server.send(data)
    assert status == 200
    check_heads(answer["heads"], predictor(folder / name))
    assert (answer["media"], answer["seconds"]) == (("video", 2.0) if name.endswith("mp4") else ("image", 0.0))
    assert (answer["timeline"], answer["damage"]) == ([], None)
    body, headers = form(data)
    assert server.ask("POST", "/v1/predict", body, headers) == (200, answer)
    status, two = server.send(data, "?head=tags&head=ssv2&top=2")
    assert list(two["heads"]) == ["tags", "ssv2"]
    check_heads(two["heads"], predictor(folder / name, ["tags", "ssv2"]), 2)


def test_those_that_share_a_pass_do_not_mix(server: Server, predictor: Predictor, folder: Path) -> None:
    names = [f"{number}.{kind}" for number in range(4) for kind in ("mp4", "png")] * 3
    with ThreadPoolExecutor(len(names)) as crowd:
        answers = list(crowd.map(lambda name: server.send((folder / name).read_bytes()), names))
    for name, (status, answer) in zip(names, answers, strict=True):
        assert status == 200, answer
        check_heads(answer["heads"], predictor(folder / name))
    text = server.ask("GET", "/metrics")[1].decode()
    samples, passes = (float(re.search(rf"cover_pack_samples_{what} (\S+)", text)[1]) for what in ("sum", "count"))  # type: ignore[index]
    assert samples > passes


def test_the_timeline_looks_at_each_part_as_at_a_video(
    server: Server, predictor: Predictor, folder: Path, tmp_path: Path
) -> None:
    """Two halves, each written as a file of its own, give what the two parts of the whole do."""
    write_halves(tmp_path)
    status, answer = server.send((tmp_path / "whole.avi").read_bytes(), "?timeline=2")
    assert status == 200
    assert [(part["start"], part["end"]) for part in answer["timeline"]] == [(0, 1), (1, 2)]
    for part, half in zip(answer["timeline"], ("first.avi", "second.avi"), strict=True):
        check_heads(part["heads"], predictor(tmp_path / half, views=Views(1, 1)))


def write_halves(folder: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    for name, part in {"whole": pictures, "first": pictures[:10], "second": pictures[10:]}.items():
        with av.open(str(folder / f"{name}.avi"), "w") as container:
            stream = container.add_stream("ffv1", rate=10)  # every frame is a key frame, and comes back as it was
            stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
            for pixels in part:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


@pytest.mark.parametrize(
    ("name", "head"), [("0.mp4", "ssv2"), ("1.mp4", "kinetics"), ("2.mp4", "tags"), ("0.png", "ssv2")]
)
def test_an_explanation_is_that_of_the_command(
    server: Server, predictor: Predictor, folder: Path, name: str, head: str
) -> None:
    _, (wanted,) = explanations(predictor, str(folder / name), ExplainOptions((head,)))
    status, result = server.explain((folder / name).read_bytes(), f"?head={head}")
    assert status == 200
    assert (result["head"], result["name"], result["damage"]) == (head, wanted.class_name, None)
    assert result["probability"] == pytest.approx(wanted.probability, abs=1e-6)
    assert [frame["time"] for frame in result["frames"]] == list(wanted.times)
    np.testing.assert_allclose([frame["heat"] for frame in result["frames"]], wanted.heat, atol=2e-6)
    assert [frame["weight"] for frame in result["frames"]] == pytest.approx(wanted.weights, abs=2e-6)
    for frame, pixels in zip(result["frames"], wanted.frames, strict=True):
        kind, data = frame["picture"].split(",")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), np.float32)
        assert kind == "data:image/jpeg;base64"
        assert picture.shape == (16, 16, 3)
        assert np.abs(picture - pixels.transpose(1, 2, 0)).mean() < 25
    other = wanted.prediction.top(2)[1][0]
    status, second = server.explain((folder / name).read_bytes(), f"?head={head}&class={other}")
    assert (status, second["name"]) == (200, other)
    assert second["frames"][0]["heat"] != result["frames"][0]["heat"]


def test_explanations_among_predictions(server: Server, predictor: Predictor, folder: Path) -> None:
    """Each has the model to itself while it is made, and no answer beside it changes."""
    files = {name: (folder / name).read_bytes() for name in ("0.mp4", "1.png", "2.mp4", "3.png")}
    wanted = {name: explanations(predictor, str(folder / name), ExplainOptions(("ssv2",)))[1][0].heat for name in files}
    names = list(files) * 4
    with ThreadPoolExecutor(16) as crowd:
        named = [crowd.submit(server.send, files[name]) for name in names]
        explained = [crowd.submit(server.explain, files[name], "?head=ssv2") for name in names]
        answers = [(one.result(), other.result()) for one, other in zip(named, explained, strict=True)]
    for name, ((status, answer), (other_status, reasons)) in zip(names, answers, strict=True):
        assert (status, other_status) == (200, 200)
        check_heads(answer["heads"], predictor(folder / name))
        np.testing.assert_allclose([frame["heat"] for frame in reasons["frames"]], wanted[name], atol=2e-6)
    assert b'cover_stage_seconds_count{stage="explain"}' in server.ask("GET", "/metrics")[1]


@contextmanager
def busy(service: Service) -> Iterator[None]:
    """The model is at something else."""
    free, begun = threading.Event(), threading.Event()
    service.first.batcher.put_alone(lambda: (begun.set(), free.wait(20)), time.monotonic() + 20)
    assert begun.wait(10)
    try:
        yield
    finally:
        free.set()


def forward_passes(server: Server) -> float:
    text = server.ask("GET", "/metrics")[1].decode()
    return float(re.search(r"cover_forward_seconds_count (\S+)", text)[1])  # type: ignore[index]


def test_an_explanation_is_no_forward_pass_to_the_metrics(server: Server, folder: Path) -> None:
    before = forward_passes(server)
    assert server.explain((folder / "0.mp4").read_bytes(), "?head=ssv2")[0] == 200
    assert forward_passes(server) == before


def test_only_so_many_explanations_at_once(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = (folder / "0.mp4").read_bytes()
    monkeypatch.setattr(server.service, "limits", replace(LIMITS, explanations=1))
    with ThreadPoolExecutor(2) as crowd, busy(server.service):
        first = crowd.submit(server.explain, clip, "?head=ssv2")
        wait_until(lambda: server.service.explaining == 1)
        status, answer = server.explain(clip, "?head=ssv2")
        assert (status, "1 explanations are under way" in answer["error"]) == (429, True)
        named = crowd.submit(server.send, clip)
        wait_until(lambda: server.service.under_way == 2)
    assert (first.result()[0], named.result()[0]) == (200, 200)
    assert server.service.explaining == 0


def test_an_explanation_whose_client_has_left_is_not_computed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[object] = []
    run = server.service.first.predictor.run
    monkeypatch.setattr(server.service.first.predictor, "run", lambda clips: begun.append(clips) or run(clips))
    clip = (folder / "0.mp4").read_bytes()
    with busy(server.service):
        with server.begin(len(clip), clip, "/v1/explain?head=ssv2"):
            wait_until(lambda: len(server.service.first.batcher._alone) == 1)
        wait_until(lambda: not server.service.first.batcher._alone and server.service.explaining == 0)
    assert server.send(clip)[0] == 200
    assert begun == []


def test_an_explanation_that_has_begun_ends_with_its_client(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next layer: the one at work is held until the client has left."""
    model, calls, gone = server.service.first.predictor.model, [], threading.Event()

    def hold(block: object, arguments: tuple[object, ...]) -> None:
        if not torch.is_inference_mode_enabled():  # the naming pass is
            calls.append(arguments)
            gone.wait(10)

    hook = model.backbone.stages()[0].register_forward_pre_hook(hold)
    clip = (folder / "0.mp4").read_bytes()
    try:
        with server.begin(len(clip), clip, "/v1/explain?head=ssv2"):
            wait_until(lambda: len(calls) == 1)
        wait_until(lambda: server.service.explaining == 0)
        gone.set()
        assert server.send(clip)[0] == 200
    finally:
        gone.set()
        hook.remove()
    assert len(calls) == 1  # another would have followed, in which this layer is computed again


def test_an_explanation_past_its_time_ends(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def dawdle(block: object, arguments: object) -> None:
        if not torch.is_inference_mode_enabled():
            calls.append(arguments)
            time.sleep(3.1)

    monkeypatch.setattr(server.service, "limits", replace(LIMITS, deadline_s=3))
    hook = server.service.first.predictor.model.backbone.stages()[0].register_forward_pre_hook(dawdle)
    try:
        status, answer = server.explain((folder / "0.mp4").read_bytes(), "?head=ssv2")
    finally:
        hook.remove()
    assert (status, "too busy" in answer["error"], len(calls)) == (503, True, 1)


def test_of_a_decoded_file_only_the_middle_view_outlasts_its_naming(
    service: Service, predictor: Predictor, folder: Path
) -> None:
    """Whatever waits for the model: the views of a head may be thirty times as many pixels."""
    kinetics, visited = predictor.plan("kinetics"), list[Any]()
    job = DecodeRequest(str(folder / "0.mp4"), (kinetics, replace(kinetics, views=Views(1, 1))))
    decoded = service._decoders

    def decode(job: DecodeRequest, deadline: float) -> Any:
        pixels = decoded(job, deadline)
        visited.append(weakref.ref(pixels.clips[0]))
        return pixels

    service._decoders = decode  # type: ignore[assignment]
    try:
        with busy(service):
            requested = service._request_explanation(
                service.first, job, ExplainQuery("kinetics"), time.monotonic() + 20, threading.Event()
            )
            assert visited[0]().shape == (6, 4, 3, 16, 16)
            visited.append(requested.pixels.clips)
        requested.result.result(timeout=10)
    finally:
        service._decoders = decoded
    assert (visited[0](), visited[1], requested.view.shape) == (None, [], (4, 3, 16, 16))


def test_a_wrong_class_costs_no_search_and_is_looked_at_when_there_is_room(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the event loop: among many classes the nearest takes half a second, and a list of them all is no line."""
    monkeypatch.setattr(difflib, "get_close_matches", lambda *arguments, **named: 1 / 0)
    status, answer = server.explain((folder / "0.mp4").read_bytes(), "?head=ssv2&class=z")
    assert (status, answer) == (422, {"error": 'the head "ssv2" has no class "z"; GET /v1/model lists them'})
    monkeypatch.setattr(server.service, "limits", replace(LIMITS, queue=0))
    assert server.explain((folder / "0.mp4").read_bytes(), "?head=ssv2&class=z")[0] == 429


def test_the_other_routes(server: Server) -> None:
    assert server.ask("GET", "/healthz") == (200, {"status": "alive"})
    assert server.ask("GET", "/readyz") == (200, {"status": "ready"})
    assert server.ask("GET", "/v1/model") == (200, {head.name: list(head.classes) for head in HEADS})
    assert b"cover_request_seconds_bucket" in server.ask("GET", "/metrics")[1]
    for path in ("/docs", "/redoc", "/nowhere", "/../etc/passwd", "/v1/predict/", "//"):
        assert server.ask("GET", path)[0] in (404, 307), path
    status, answer = server.ask("GET", "/v1/predict")
    assert (status, list(answer)) == (405, ["error"])


def test_every_error_is_documented_in_one_shape(server: Server) -> None:
    result = server.ask("GET", "/openapi.json")[1]
    for route, answer in {"/v1/predict": "PredictResponse", "/v1/explain": "ExplainResponse"}.items():
        record = result["paths"][route]["post"]
        assert set(record["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "500", "503"}
        for status, response in record["responses"].items():
            shape = response["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert shape == (answer if status == "200" else "ErrorResponse")
        assert set(record["requestBody"]["content"]) >= {"multipart/form-data", "video/*"}
    assert list(result["components"]["schemas"]["ErrorResponse"]["properties"]) == ["error"]
    requested = result["paths"]["/v1/explain"]["post"]["parameters"]
    assert {each["name"]: each["required"] for each in requested} == {"head": True, "class": False, "model": False}


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()
        text, policy = response.read().decode(), response.headers["content-security-policy"]
    assert "http" not in text.replace("http-equiv", "")
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'" in policy


# --- wrong and hostile input


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\4IDATxxxx"
        + bytes(100)
    )


def hostile(folder: Path) -> dict[str, tuple[bytes, int, str]]:
    """name -> file, status, part of the reason."""
    clip, target = (folder / "0.mp4").read_bytes(), str(folder / "0.mp4").encode()
    long_clip, buffer = folder / "hours.mp4", io.BytesIO()
    if not long_clip.exists():
        write_clip(long_clip, 0, 30, 1)
    Image.new("RGB", (1200, 900)).save(buffer, "PNG")
    return {
        "nothing": (b"", 422, "empty"),
        "pixel bomb": (png_header(100_000, 100_000), 422, "10000000000 pixels"),
        "too many pixels": (buffer.getvalue(), 422, "1200x900 pixels"),
        "too long": (long_clip.read_bytes(), 422, "lasts 30 s; the limit is 20 s"),
        "truncated clip": (clip[: len(clip) // 3], 422, "cannot be read"),
        "truncated image": ((folder / "0.png").read_bytes()[:60], 422, "damaged"),
        "pickle": (pickle.dumps({"model": np.zeros(3)}), 415, "neither a video nor an image"),
        "zip": (b"PK\3\4" + bytes(100), 415, "neither"),
        "text": (b"hello " * 100, 415, "neither"),
        "playlist": (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:" + target + b"\n#EXT-X-ENDLIST\n",
            415,
            "neither",
        ),
        "concat list": (b"ffconcat version 1.0\nfile '" + target + b"'\n", 415, "neither"),
        "dash behind the name of a box": (
            b'<!--free --><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
            b"<Period><AdaptationSet><Representation><BaseURL>file:" + target + b"</BaseURL></Representation>"
            b"</AdaptationSet></Period></MPD>",
            415,
            "neither",
        ),
        "text behind a box": (b"\0\0\0\x10free12345678#EXTM3U\nfile:" + target, 415, "neither"),
        "playlist in an mp4's clothes": (b"\x80\x80\0\x18mdat#EXTM3U\nfile:" + target, 422, "cannot be read"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), 422, "cannot be read"),
        "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', 415, "neither"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "neither"),
        "noise in an mp4's clothes": (b"\0\0\0\x18ftypmp42" + os.urandom(5000), 422, "cannot be read"),
        "noise in a jpeg's clothes": (b"\xff\xd8\xff\xe0" + os.urandom(5000), 422, "cannot be read"),
        "noise in a gif's clothes": (b"GIF89a" + bytes(9), 422, "cannot be read"),
    }


def test_hostile_files(server: Server, folder: Path) -> None:
    for name, (data, status, part) in hostile(folder).items():
        result, answer = server.send(data)
        assert (result, list(answer)) == (status, ["error"]), (name, answer)
        assert part in answer["error"], name
        assert "\n" not in answer["error"]
        assert str(folder) not in answer["error"], name
        assert server.service.uploads.folder.name not in answer["error"], name
        assert server.explain(data, "?head=ssv2") == (result, answer), name


def test_hostile_requests(server: Server, folder: Path) -> None:
    clip = (folder / "0.mp4").read_bytes()
    body, headers = form(clip)
    wrong = {
        "no type": (clip, {}, 415),
        "json": (b"{}", {"content-type": "application/json"}, 415),
        "no boundary": (body, {"content-type": "multipart/form-data"}, 400),
        "another boundary": (body, {"content-type": "multipart/form-data; boundary=other"}, 400),
        "a boundary that is too long": (body, {"content-type": "multipart/form-data; boundary=" + "x" * 500}, 400),
        "cut off": (body[:-20], headers, 400),
        "no such part": (*form(clip, field="other"), 422),
        "two parts": (*form(clip, times=2), 422),
        "too large": (bytes(3 * MEGABYTE), {"content-type": "video/mp4"}, 413),
    }
    for name, (data, record, status) in wrong.items():
        result, answer = server.ask("POST", "/v1/predict", data, record)
        assert (result, list(answer)) == (status, ["error"]), (name, answer)
    for query, part in {
        "?top=0": "query.top",
        "?top=x": "query.top",
        "?timeline=33": "query.timeline",
        "?head=ssv3": "did you mean",
    }.items():
        status, answer = server.send(clip, query)
        assert (status, part in answer["error"]) == (422, True), answer
    for query, part in {
        "": "query.head",
        "?head=ssv3": 'the checkpoint has no head "ssv3"; did you mean',
        "?head=": "no head",
        "?head=ssv2&class=z": 'the head "ssv2" has no class "z"',
        "?head=ssv2&class=": "no class",
        "?head=%00&class=%00": "no head",
        "?head=" + "x" * 201: "query.head",
        "?head=ssv2&class=" + "x" * 1001: "query.class",
    }.items():
        status, answer = server.explain(clip, query)
        assert (status, part in answer["error"], "\n" in answer["error"]) == (422, True, False), answer


def test_a_name_is_never_a_path(server: Server, folder: Path, tmp_path: Path) -> None:
    for name in (
        "../../escaped.mp4",
        str(tmp_path / "escaped.mp4"),
        "..\\escaped",
        "\0",
        "a" * 2000,
        "<script>",
        "é\r\nx: y",
    ):
        body, headers = form((folder / "0.mp4").read_bytes(), name)
        assert server.ask("POST", "/v1/predict", body, headers)[0] in (200, 400)
    assert not list(tmp_path.rglob("escaped*"))
    assert not list(server.service.uploads.folder.parent.rglob("escaped*"))


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explain?head=ssv2", "/healthz", "/", "/nowhere"])
def test_an_endless_body_is_ended_on_every_route(server: Server, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: video/mp4\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )
        ten_times_too_much = (b"40000\r\n" + bytes(0x40000) + b"\r\n") * 80
        with pytest.raises(OSError):
            line.sendall(ten_times_too_much)
    wait_until(lambda: server.ask("GET", "/healthz")[0] == 200)


FORM = {"content-type": "multipart/form-data; boundary=b"}
FIRST = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n'


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        (b"--b\r\n\r\n\r\n" * 200_000 + b"--b--\r\n", 400, "parts"),
        (b"--b\r\nx: y\r\n\r\nz\r\n" * 50_000 + b"--b--\r\n", 400, "parts"),
        (FIRST + b"x: y\r\n" * 100_000 + b"\r\nz\r\n--b--\r\n", 400, "form"),
        (FIRST + b"x: " + b"y" * 1_000_000 + b"\r\n\r\nz\r\n--b--\r\n", 400, "form"),
        (FIRST + b"\r\n" + b"\r" * 1_900_000 + b"\r\n--b--\r\n", 415, "neither"),
        (FIRST + b"\r\n" + b"\r\n--c" * 300_000 + b"\r\n--b--\r\n", 415, "neither"),
        (b"\r\n" * 900_000 + FIRST + b"\r\nz\r\n--b--\r\n", 415, ""),
    ],
    ids=["empty parts", "small parts", "headers", "a long header", "returns", "near boundaries", "lines before"],
)
def test_no_form_holds_up_the_server(server: Server, body: bytes, status: int, part: str) -> None:
    """Other requests are answered meanwhile."""
    slowest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            began = time.monotonic()
            server.ask("GET", "/healthz")
            slowest[0] = max(slowest[0], time.monotonic() - began)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.monotonic()
    result, answer = server.ask("POST", "/v1/predict", body, FORM)
    took = time.monotonic() - began
    done.set()
    watching.join()
    # A body of 2 MB that takes longer to parse than to arrive in time is refused for its time.
    assert result in (status, 408), answer
    assert part in answer["error"] or result == 408
    assert took < 5
    assert slowest[0] < 2


@pytest.mark.parametrize("boundary", ["", "x" * 71, '"b', "b;b", "\x80", "é" * 40])
def test_no_boundary_is_a_bug(server: Server, boundary: str) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    status, answer = server.ask("POST", "/v1/predict", FIRST + b"\r\nz\r\n--b--\r\n", headers)
    assert status in (400, 415)
    assert "\n" not in answer["error"]


def exchange(server: Server, request: bytes) -> bytes:
    """All that the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(request)
        return b"".join(iter(lambda: line.recv(1 << 16), b""))


@pytest.mark.parametrize("path", ["/v1/predict", "/healthz"])
@pytest.mark.parametrize("length", [b"5", b"0"])
def test_a_body_with_two_lengths_is_refused(server: Server, path: str, length: bytes) -> None:
    head = b"POST " + path.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
    both = head + b"content-length: " + length + b"\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = exchange(server, both + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1, "what may be a request hidden in a body is not answered"


@pytest.mark.parametrize(
    ("size", "headers", "status"),
    [
        (6 * MEGABYTE, {"content-type": "video/mp4"}, 413),
        (6 * MEGABYTE, FORM, 413),
        (MEGABYTE, {"content-type": "application/json"}, 415),
        (MEGABYTE, FORM | {"content-type": "multipart/form-data"}, 400),
    ],
)
def test_a_client_that_sends_all_first_gets_the_answer(
    server: Server, size: int, headers: dict[str, str], status: int
) -> None:
    """Not a reset, on fast and on slow lines."""
    head = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    for pause in (0.0, 0.02):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
            line.sendall(b"POST /v1/predict HTTP/1.1\r\nhost: x\r\n" + head + b"content-length: %d\r\n\r\n" % size)
            for _ in range(16):
                line.sendall(bytes(size // 16))
                time.sleep(pause)
            answer = b"".join(iter(lambda: line.recv(1 << 16), b""))
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert answer.endswith(b"}")


def test_a_client_that_asks_before_it_sends_is_refused_at_once(server: Server) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: video/mp4\r\nexpect: 100-continue\r\n"
    began = time.monotonic()
    answer = exchange(server, head + b"content-length: 99000000\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert time.monotonic() - began < 1.5


def test_the_page_names_the_model(server: Server) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as line:
        line.request("GET", "/")
        text = line.getresponse().read().decode()
    assert "{{" not in text.split("<style>")[0]
    assert "<title>&lt;b&gt;cotrain - cover</title>" in text


def test_a_slow_upload_is_ended(server: Server) -> None:
    began = time.monotonic()
    with server.begin(1000, b"x") as line:
        answer = line.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began >= LIMITS.upload_s
        while line.recv(4096):  # the connection ends too
            pass


@pytest.mark.parametrize(
    "text",
    [
        b"\0\1\2\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"X" * 99_999,
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 99_999,
    ],
)
def test_what_is_no_http_or_has_too_large_a_head(server: Server, text: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(text)
        answer = b"".join(iter(lambda: line.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 400")


def test_a_connection_that_is_kept_for_nothing_is_closed(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=KEEP_ALIVE_S + 10) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        while line.recv(4096):
            pass
        assert time.monotonic() - began < KEEP_ALIVE_S + 5


def test_a_client_that_leaves(server: Server, folder: Path) -> None:
    clip = (folder / "0.mp4").read_bytes()
    with server.begin(len(clip), clip[:5000]):
        wait_until(lambda: len(server.files()) == 1)
    wait_until(lambda: server.files() == [])
    with server.begin(len(clip), clip):
        pass
    wait_until(lambda: server.service.under_way == 0 and server.files() == [])
    assert server.send(clip)[0] == 200


def test_a_full_queue_refuses_at_once(server: Server, folder: Path) -> None:
    lines = [server.begin(1000) for _ in range(LIMITS.queue)]
    wait_until(lambda: server.service.under_way == LIMITS.queue)
    for send in (server.send, partial(server.explain, query="?head=ssv2")):
        status, answer = send((folder / "0.mp4").read_bytes())
        assert (status, "under way" in answer["error"]) == (429, True)
    assert server.ask("GET", "/healthz")[0] == 200
    for line in lines:
        line.close()
    wait_until(lambda: server.send((folder / "0.mp4").read_bytes())[0] == 200)


def test_only_so_many_connections(service: Service) -> None:
    service.limits, before = replace(LIMITS, connections=5), service.limits
    try:
        with serving(service) as server:
            lines = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(5)]
            wait_until(lambda: server.ask("GET", "/healthz")[0] == 503)
            for line in lines:
                line.close()
            wait_until(lambda: server.ask("GET", "/healthz")[0] == 200)
    finally:
        service.limits = before


def test_a_key(service: Service, folder: Path) -> None:
    with serving(service, key="k" * 20, page=True) as server:
        clip = (folder / "0.mp4").read_bytes()
        for path in ("/healthz", "/readyz", "/", "/openapi.json"):
            assert server.ask("GET", path)[0] == 200
            assert "ssv2" not in str(server.ask("GET", path)[1]), "a name that needs the key"
        for item in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "k" * 20},
            {"authorization": "Basic " + "k" * 20},
        ):
            for method, path in (
                ("POST", "/v1/predict"),
                ("POST", "/v1/explain?head=ssv2"),
                ("GET", "/metrics"),
                ("GET", "/v1/model"),
                ("GET", "/nowhere"),
            ):
                status, answer = server.ask(method, path, clip, {"content-type": "video/mp4", **item})
                assert (status, list(answer)) == (401, ["error"])
        item = {"content-type": "video/mp4", "authorization": "Bearer " + "k" * 20}
        assert server.ask("POST", "/v1/predict", clip, item)[0] == 200
        assert "401" in server.ask("GET", "/openapi.json")[1]["paths"]["/v1/predict"]["post"]["responses"]


def test_a_bug_is_a_line_in_the_log(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server.service, "check", lambda wish: 1 / 0)
    assert server.send(b"x") == (500, {"error": "the server failed; its log says why"})
    monkeypatch.undo()
    time.sleep(0.2)  # the line comes behind the answer
    (line,) = capfd.readouterr().err.splitlines()
    assert "bug in POST '/v1/predict': ZeroDivisionError" in line
    assert "test_service.py:" in line
    monkeypatch.setattr(server.service.first.predictor.model, "normalize", lambda pixels: 1 / 0)
    assert server.send((folder / "0.mp4").read_bytes())[0] == 500
    monkeypatch.undo()
    assert server.send((folder / "0.mp4").read_bytes())[0] == 200


# --- the decoding processes


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A file that is never read to its end: its other end is not opened."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_a_file_that_takes_too_long_is_given_up_and_no_other_waits_for_it(
    predictor: Predictor, folder: Path, hanging: Path
) -> None:
    plans = (predictor.plan("ssv2"),)
    decoders = Decoders(2, replace(LIMITS, decode_s=0.5))
    with closing(decoders), ThreadPoolExecutor(1) as other:
        until = time.monotonic() + 60
        hung = other.submit(decoders, DecodeRequest(str(hanging), plans), until)
        assert len(decoders(DecodeRequest(str(folder / "0.mp4"), plans), until).clips) == 1
        with pytest.raises(Refused, match=r"decoding took longer than 0.5 s"):
            hung.result()
        assert decoders.replaced == 1
        for _ in range(4):
            decoders(DecodeRequest(str(folder / "0.png"), plans), until)
    assert not any(worker._process.is_alive() for worker in decoders.pool._all)


def test_a_file_that_crashes_its_decoder(predictor: Predictor, folder: Path, hanging: Path) -> None:
    plans = (predictor.plan("ssv2"),)
    decoders = Decoders(1, replace(LIMITS, decode_s=30))
    with closing(decoders), ThreadPoolExecutor(1) as other:
        hung = other.submit(decoders, DecodeRequest(str(hanging), plans), time.monotonic() + 60)
        wait_until(decoders.pool._idle.empty)
        with pytest.raises(Refused, match="too busy"):
            decoders(DecodeRequest(str(folder / "0.mp4"), plans), time.monotonic() + 0.1)
        decoders.pool._all[0]._process.kill()
        with pytest.raises(Refused, match="crashed its decoder"):
            hung.result()
        decoders(DecodeRequest(str(folder / "0.mp4"), plans), time.monotonic() + 60)


def test_a_file_that_is_gone_costs_no_process(predictor: Predictor, folder: Path) -> None:
    """A client that leaves takes its upload along, maybe between a decoder's being asked and its opening the file."""
    plans, until = (predictor.plan("ssv2"),), time.monotonic() + 60
    decoders = Decoders(1, LIMITS)
    with closing(decoders):
        with pytest.raises(Refused, match="the file cannot be read: No such file") as caught:
            decoders(DecodeRequest(str(folder / "gone"), plans), until)
        assert (caught.value.status, decoders.replaced) == (422, 0)
        decoders(DecodeRequest(str(folder / "0.png"), plans), until)


def test_a_decoding_process_has_bounds(predictor: Predictor, folder: Path) -> None:
    """Against a picture that is within the limit of pixels and beyond that of memory."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(buffer, "PNG")
    (folder / "large.png").write_bytes(buffer.getvalue())
    decoders = Decoders(1, replace(LIMITS, pixels=100_000_000, memory=20 * MEGABYTE, decode_s=30))
    with closing(decoders), pytest.raises(Refused, match="memory"):
        decoders(DecodeRequest(str(folder / "large.png"), (predictor.plan("ssv2"),)), time.monotonic() + 60)


# --- packing


def test_a_pack_is_never_larger_than_it_may_be_and_none_waits_for_ever(predictor: Predictor) -> None:
    passes: list[tuple[int, int]] = []
    batcher = Batcher(
        predictor,
        Batching(frames=12, wait_s=0.2),
        lambda samples, frames, seconds: passes.append((samples, frames)),
    )
    began = time.monotonic()
    clip, image = np.zeros((1, 4, 3, 16, 16), np.uint8), np.zeros((3, 1, 3, 16, 16), np.uint8)
    waiting = [batcher.put(views, began + 30) for views in (clip, image, clip, clip, np.repeat(clip, 5, axis=0), image)]
    results = [future.result(timeout=10) for future in waiting]
    batcher.close()
    assert passes == [(3, 11), (1, 4), (1, 20), (1, 3)]  # one that is larger goes alone
    assert all(np.allclose(scores["ssv2"], results[0]["ssv2"], atol=1e-6) for scores in results[2:4])
    assert not batcher.alive
    with pytest.raises(Refused, match="too busy"):
        batcher.put(clip, time.monotonic() + 1)


def clip_of(frames: int) -> np.ndarray:
    return np.zeros((1, frames, 3, 16, 16), np.uint8)


class Held:
    """A batcher whose model is busy until `go`; `order` is what it did since."""

    def __init__(self, predictor: Predictor, frames: int = 100) -> None:
        self.order: list[str] = []
        self.free = threading.Event()
        batching = Batching(frames=frames, wait_s=0)
        self.batcher = Batcher(
            predictor, batching, lambda samples, frames, seconds: self.order.append(f"pack of {samples}")
        )
        begun = threading.Event()
        self.batcher.put_alone(lambda: (begun.set(), self.free.wait(10)), self.until)
        assert begun.wait(10)

    @property
    def until(self) -> float:
        return time.monotonic() + 30

    def close(self) -> None:
        self.free.set()
        self.batcher.close()


@pytest.fixture
def held(predictor: Predictor) -> Iterator[Held]:
    with closing(Held(predictor)) as present:
        yield present


def test_what_wants_the_model_alone_lets_packs_go_before_it(held: Held) -> None:
    """One of these between two Packs: the second waits for those who came after it; and none is a forward pass to the
    metrics.
    """
    alone = [
        held.batcher.put_alone(lambda number=number: held.order.append(f"alone {number}"), held.until)
        for number in range(3)
    ]
    named = [held.batcher.put(clip_of(60), held.until) for _ in range(3)]  # no two of them share a Pack
    held.close()
    assert held.order == ["pack of 1", "alone 0", "pack of 1", "alone 1", "pack of 1", "alone 2"]
    assert all(future.done() and not future.exception() for future in alone + named)


def test_what_goes_wrong_alone(held: Held, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise Refused(503, "no more")

    wrong, refused = held.batcher.put_alone(lambda: 1 / 0, held.until), held.batcher.put_alone(refuse, held.until)
    late = held.batcher.put_alone(lambda: held.order.append("late"), time.monotonic() - 1)
    held.close()
    assert isinstance(wrong.exception(), ZeroDivisionError)
    assert (str(refused.exception()), held.order) == ("no more", [])
    with pytest.raises(Refused, match="too busy"):
        late.result()
    (line,) = capfd.readouterr().err.splitlines()  # a refusal is no failure
    assert "ZeroDivisionError" in line
    with pytest.raises(Refused, match="too busy"):
        held.batcher.put_alone(lambda: 0, held.until)


def test_what_is_given_up_is_dropped_with_its_pixels(held: Held) -> None:
    gone = threading.Event()
    named = held.batcher.put(clip_of(60), held.until, gone)
    alone = held.batcher.put_alone(lambda: held.order.append("alone"), held.until, gone)
    retained = held.batcher.put(clip_of(1), held.until)
    pixels = weakref.ref(held.batcher._waiting[0].views)
    gone.set()
    held.batcher.drop_given_up()
    assert (named.cancelled(), alone.cancelled(), pixels()) == (True, True, None)
    for put in (partial(held.batcher.put, clip_of(1)), partial(held.batcher.put_alone, lambda: 0)):
        with pytest.raises(Refused):
            put(held.until, gone)
    held.close()
    assert held.order == ["pack of 1"]
    assert not retained.exception()


def test_who_is_given_up_waits_for_no_room(held: Held) -> None:
    gone = threading.Event()
    full = [held.batcher.put(clip_of(100), held.until) for _ in range(Batcher.HELD_PACKS)]
    with ThreadPoolExecutor(1) as other:
        blocked = other.submit(held.batcher.put, clip_of(1), held.until, gone)
        with pytest.raises(TimeoutError):
            blocked.result(timeout=0.2)
        gone.set()
        held.batcher.drop_given_up()
        with pytest.raises(Refused):
            blocked.result(timeout=5)
    held.close()
    assert all(not future.exception() for future in full)


def test_what_is_too_late_is_not_computed(predictor: Predictor) -> None:
    passes: list[int] = []
    batcher = Batcher(
        predictor,
        Batching(frames=100, wait_s=0.2),
        lambda samples, frames, seconds: passes.append(samples),
    )
    clip = np.zeros((1, 4, 3, 16, 16), np.uint8)
    late, given_up, retained = (batcher.put(clip, time.monotonic() + seconds) for seconds in (0.05, 30, 30))
    given_up.cancel()
    assert retained.result(timeout=10)["ssv2"].shape == (7,)
    with pytest.raises(Refused, match="too busy"):
        late.result(timeout=10)
    batcher.close()
    assert passes == [1]


# --- what lies on disk


def test_uploads_of_a_server_that_was_killed_are_removed_and_no_others(tmp_path: Path) -> None:
    code = (
        f"import os; from cover.serve.uploads import UploadFolder; folder = "
        f"UploadFolder({str(tmp_path)!r}); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    (dead,) = tmp_path.iterdir()
    (dead / "upload").write_bytes(b"x")
    (tmp_path / "cover-serve-young").mkdir()
    (tmp_path / "another").mkdir()
    with closing(UploadFolder(tmp_path)) as one, closing(UploadFolder(tmp_path)) as two:
        assert not dead.exists()
        assert one.folder.stat().st_mode & 0o777 == 0o700
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            ["another", "cover-serve-young", one.folder.name, two.folder.name]
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "cover-serve-young"]
