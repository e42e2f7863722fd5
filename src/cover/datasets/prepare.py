"""`cover prepare`: re-encoding a catalog's data so that later reading is fast, as small files or shards with a catalog.

Originals are only read. What was made of what is kept beside the manifests, line by line: a run that was killed, or met
a full disk, goes on from there, and ends with the very bytes of one that was not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cover.console import Meter, print_table, say
from cover.datasets.catalog import PREPARED, Catalog, DatasetSpec, load_catalog
from cover.datasets.exclusions import exclusions_path, read_exclusions, write_exclusions
from cover.datasets.manifest import SPLITS, open_manifest
from cover.datasets.prepare_log import catalog_of
from cover.datasets.prepare_split import SPOOL, OutputLayout, SplitJob, drop, make, origin_digest
from cover.errors import UserError
from cover.media.encode import Encoding
from cover.media.sampling import Sampling
from cover.media.source import is_url
from cover.processes import ProcessPool
from cover.yaml_files import Dumper, read_yaml

_NAMED = 20  # failures named in a result; the manifest and the list of what was made have them all
LOCK = "prepare.lock"  # in the output folder; it stays, empty
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = {"video": 1, "image": 16}


def prepare(
    catalog_path: str | Path,
    out: str | Path,
    workers: int,
    names: Sequence[str] | None = None,
    encoding: Encoding = Encoding(),  # noqa: B008
    shard_bytes: int | None = None,
    url: str | None = None,
) -> list[dict[str, Any]]:
    """Encode the usable samples of the data sets `names` (default: all) into `out`, with manifests and a catalog.

    `shard_bytes`: into tar shards of about that size, not into files. `url`: where the folder will be read from;
    default: where it lies. Returns one dict per data set and split: `dataset`, `split`, `listed`, `prepared`, `copied`,
    `partial`, `failed`, `unusable` (rows that were so already), `shards`, `bytes_before`, `bytes_after`, `encoded` (in
    this run), `manifest`, and `failures`, the first 20 that are partial or failed as `{path, outcome, why}`. `workers`
    0 encodes in this process. Raises UserError for a catalog or a folder that is not sound, a file that changed since
    `cover index`, or a disk that is full; what was made by then is kept.
    """
    catalog = load_catalog(catalog_path)
    specs = [catalog.spec(name) for name in dict.fromkeys(names or catalog.specs)]
    out = Path(out).absolute()
    _check_out(catalog, out)
    layout = OutputLayout(out, encoding, shard_bytes, _checked_url(url))
    with _alone(out), ProcessPool(workers) as pool, ExitStack() as stack:
        with _in_one_line(out):
            _check_origin(catalog, specs, out)
            jobs = [stack.enter_context(closing(job)) for spec in specs for job in _jobs(catalog, spec, layout)]
        with _in_one_line(out, jobs):
            _run(jobs, pool)
            _write_catalog(out, specs, jobs)
            _drop_others(out, specs, jobs)
            _carry_exclusions(catalog, out)
        shutil.rmtree(out / SPOOL, ignore_errors=True)
    return [_result(job) for job in jobs]


def print_prepare(results: Sequence[dict[str, Any]]) -> None:
    """The results of `prepare` as a table on stdout, and on stderr what failed or is damaged."""
    counts = ["listed", "prepared", "copied", "partial", "failed", "unusable", "shards"]
    rows = [
        [
            result["dataset"],
            result["split"],
            *(result[count] for count in counts),
            *map(_size, (result["bytes_before"], result["bytes_after"])),
        ]
        for result in results
    ]
    print_table(["data set", "split", *counts, "before", "after"], rows)
    for result in results:
        for failure in result["failures"]:
            say(f"{result['dataset']} {result['split']}: {failure['outcome']}: {failure['path']}: {failure['why']}")
        unnamed = result["partial"] + result["failed"] - len(result["failures"])
        if unnamed:
            say(f"{result['dataset']} {result['split']}: and {unnamed} more, all in {result['made']}")


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# --- what may be written where ---


def _check_out(catalog: Catalog, out: Path) -> None:
    """Raises UserError where originals or their catalog could be touched, or where files would later be taken for
    originals.
    """
    place = out.resolve()
    if place == catalog.path.parent.resolve():
        raise UserError(f"--out: {out} holds the catalog of the originals; name another folder")
    for spec in catalog.specs.values():
        root = spec.root.resolve()
        if place == root or root in place.parents or place in root.parents:
            which = "inside" if root in place.parents else "the same as" if place == root else "around"
            raise UserError(
                f"--out: {out} is {which} the root of {spec.name}, {spec.root}; name a folder apart from the originals"
            )
    if (out / "catalog.yaml").exists():
        other = [spec.name for spec in load_catalog(out / "catalog.yaml").specs.values() if spec.format != PREPARED]
        if other:
            raise UserError(
                f"--out: {out / 'catalog.yaml'} is the catalog of {other[0]}, which is not prepared; name another folder"
            )


def _checked_url(url: str | None) -> str | None:
    if url is None:
        return None
    if not is_url(url):
        raise UserError(f'--url: expected an address such as s3://bucket/folder, got "{url}"')
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UserError(
            f'--url: fsspec knows no "{protocol}://"; usual are s3://, gs://, az://, hf:// and https://'
        ) from None
    except ImportError:
        pass  # the package is wanted where the data are read, which may be another machine
    return url


def _check_origin(catalog: Catalog, specs: Sequence[DatasetSpec], out: Path) -> None:
    """Raises UserError where a data set of the same name, made from another catalog, would be replaced."""
    ours = _origin(catalog)
    for spec in specs:
        for split in SPLITS:
            theirs = catalog_of(origin_digest(out, spec.name, split))
            if theirs not in (None, ours):
                also = f"or remove {out / 'manifests' / spec.name}-* first"
                raise UserError(
                    f"--out: {out} holds {spec.name} of {theirs}, which is not {ours}; name another folder, {also}"
                )


def _origin(catalog: Catalog) -> str:
    return os.fsdecode(catalog.path.resolve())


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the folder, and let no second run write into it. Raises UserError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        # A file open for writing: network file systems lock no folders.
        lock = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be made or written to: {error.strerror}") from None
    try:
        _lock(lock, out)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--out: another `cover prepare` is writing into {out}; wait for it") from None
    except OSError as error:
        say(
            f"{out / LOCK} cannot be locked ({error.strerror}): see to it that no other `cover prepare` writes into this folder"
        )


@contextmanager
def _in_one_line(out: Path, jobs: Sequence[SplitJob] = ()) -> Iterator[None]:
    """Turns an OSError into a UserError: where, what went wrong, and of `jobs` what is done and kept, and what is
    needed.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        where = os.fsdecode(error.filename).removeprefix("file:") if error.filename and not full else out
        reason = "the disk is full" if full else error.strerror or str(error)
        raise UserError(f"{where}: {reason}{_so_far(jobs, full)}") from None


def _so_far(jobs: Sequence[SplitJob], full: bool) -> str:
    done, total = (sum(job.settled for job in jobs), sum(job.total for job in jobs))
    if not total:
        return ""
    output = sum(job.bytes_after for job in jobs)
    need = f"about {_size(output / done * (total - done))} more are needed; " if output and full else ""
    return f": {done} of {total} samples are done ({_size(output)}) and kept; {need}run the same command to go on"


# --- the work ---


def _jobs(catalog: Catalog, spec: DatasetSpec, layout: OutputLayout) -> Iterator[SplitJob]:
    for split in spec.splits:
        path = catalog.manifest_path(spec.name, split)
        if split == "dev" and "dev" not in spec.annotations and not path.is_file():
            continue  # too few rows to carve one
        manifest = open_manifest(path)
        yield SplitJob(spec.name, split, manifest, layout, manifest.scope or spec.scope, _origin(catalog))


def _run(jobs: Sequence[SplitJob], pool: ProcessPool) -> None:
    for job in jobs:
        job.check_unchanged()
    total, settled = sum(job.total for job in jobs), sum(job.settled for job in jobs)
    with Meter("prepare", total, settled) as meter:
        for job in jobs:
            job.pack()
            work = partial(make, manifest=job.manifest.path, layout=job.layout, split=job.folder)
            for part in pool.as_completed(work, job.todo, _CHUNK[job.manifest.media], lambda item: None):
                for item, outcome in part:
                    job.accept(item, outcome)
                failed = sum(job.counts["failed"] for job in jobs)
                meter.advance(len(part), f"{failed} failed" if failed else None)
            job.finish()


def _result(job: SplitJob) -> dict[str, Any]:
    flawed = [done for done in job.outcomes() if done.outcome in ("partial", "failed")]
    return {
        "dataset": job.name,
        "split": job.split,
        "listed": len(job.manifest),
        **{outcome: job.counts[outcome] for outcome in ("prepared", "copied", "partial", "failed")},
        "unusable": len(job.manifest) - job.total,
        "shards": len(job.shards),
        "bytes_before": job.bytes_before,
        "bytes_after": job.bytes_after,
        "encoded": job.encoded,
        "manifest": str(job.manifest_path),
        "made": str(job.log.path),
        "failures": [{"path": done.origin, "outcome": done.outcome, "why": done.why} for done in flawed[:_NAMED]],
    }


def _write_catalog(out: Path, specs: Sequence[DatasetSpec], jobs: Sequence[SplitJob]) -> None:
    """Add the data sets to the folder's catalog, which keeps those of earlier runs."""
    path = out / "catalog.yaml"
    entries = read_yaml(path) if path.exists() else {}
    for spec in specs:
        manifests = {job.split: str(job.manifest_path.relative_to(out)) for job in jobs if job.name == spec.name}
        entries[spec.name] = prepared_entry(spec, manifests)
    beside = path.with_name(".catalog.yaml")
    text = yaml.dump(entries, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _drop_others(out: Path, specs: Sequence[DatasetSpec], jobs: Sequence[SplitJob]) -> None:
    """Remove the splits that these data sets had in an earlier run and have no more."""
    ours = {(job.name, job.split) for job in jobs}
    for spec in specs:
        for split in SPLITS:
            if (spec.name, split) not in ours:
                drop(out, spec.name, split)


def _carry_exclusions(catalog: Catalog, out: Path) -> None:
    """What `cover overlap` found among the originals holds for what was made of them: the rows are the same."""
    path = exclusions_path(catalog)
    if not path.is_file():
        return
    result, metadata = read_exclusions(path)
    digests: dict[str, str] = metadata["manifests"]
    stale = [file for file in digests if _digest(path.parent / file) != digests[file]]
    if stale:
        say(
            f"{path} is older than {stale[0]} and was not taken over; run `cover overlap {catalog.path}`, then this command again"
        )
        return
    names = _current(out, digests)
    present = [item for item in result if item.dataset in names]
    carried = {file: _digest(out / "manifests" / file) or "" for file in digests if _set_of(file) in names}
    write_exclusions(exclusions_path(load_catalog(out / "catalog.yaml")), present, carried, metadata["kinds"])


def _current(out: Path, digests: Mapping[str, str]) -> set[str]:
    """The data sets that were prepared from the very manifests of `digests`: in others, a row of the same number may be
    another one.
    """
    files = {file: out / "manifests" / file for file in digests}
    old = {
        _set_of(file)
        for file, place in files.items()
        if not place.is_file() or open_manifest(place).original != digests[file]
    }
    for name in sorted(old & {_set_of(file) for file, place in files.items() if place.is_file()}):
        say(f"the exclusions of {name} were not taken over: it was indexed anew since it was prepared; prepare it too")
    return {_set_of(file) for file in digests} - old


def _set_of(file: str) -> str:
    """The data set of a manifest's file name."""
    return file.rpartition("-")[0]


def _digest(manifest: Path) -> str | None:
    return open_manifest(manifest).digest() if manifest.is_file() else None


def prepared_entry(spec: DatasetSpec, manifests: dict[str, str]) -> dict[str, Any]:
    """How a prepared data set is read: as its originals are."""
    sampling = spec.sampling
    kind = (
        "dense"
        if sampling == Sampling("dense")
        else f"dense@{sampling.interval!r}"
        if sampling.kind == "dense"
        else sampling.kind
    )
    return {
        "format": PREPARED,
        "root": ".",
        "media": spec.media,
        "annotations": manifests,
        "flip": spec.flip,
        "sampling": kind,
        "views": str(spec.views),
        "crop_scale": list(spec.crop_scale),
    }
