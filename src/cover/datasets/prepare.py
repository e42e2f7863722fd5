"""`cover prepare`: re-encodes a catalog's data as small files or shards that are fast to read.

The output folder gets manifests and a catalog of its own. The originals are only read. A log beside the manifests
records every finished sample. After a kill or a full disk the same command continues, and the result has the same bytes
as a run without interruption.
"""

from __future__ import annotations

import errno
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
from cover.locks import alone_in
from cover.media.encode import Encoding
from cover.media.sampling import Sampling
from cover.media.source import is_url
from cover.processes import ProcessPool
from cover.yaml_files import Dumper, read_yaml

_NAMED = 20  # failures in a result; the manifest and the prepare log have all of them
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = {"video": 1, "image": 16}  # samples of a task of the process pool


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

    `workers`: processes that encode, 0 to encode in this process. `shard_bytes`: write tar shards of about this size
    instead of files. `url`: the address from which the folder will be read later; by default its own path.

    Returns one dict per data set and split: `dataset`, `split`, `manifest`, `made` (path of the prepare log); the rows
    `listed`, `prepared`, `copied`, `partial`, `failed` and `unusable` (before preparing); `shards`, `bytes_before`,
    `bytes_after`, `encoded` (samples in this run); and `failures`, the first 20 partial or failed samples as
    `{path, outcome, why}`.

    Raises UserError for an invalid catalog or folder, a file that changed after `cover index`, or a full disk. Finished
    samples stay valid then.
    """
    catalog = load_catalog(catalog_path)
    specs = [catalog.spec(name) for name in dict.fromkeys(names or catalog.specs)]
    out = Path(out).absolute()
    _check_out(catalog, out)
    layout = OutputLayout(out, encoding, shard_bytes, _checked_url(url))
    with alone_in(out, "--out"), ProcessPool(workers) as pool, ExitStack() as stack:
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
    """Print the results of `prepare`: a table on stdout, failed and damaged samples on stderr."""
    counts = ["listed", "prepared", "copied", "partial", "failed", "unusable", "shards"]
    rows = []
    for result in results:
        sizes = map(_size, (result["bytes_before"], result["bytes_after"]))
        rows.append([result["dataset"], result["split"], *(result[count] for count in counts), *sizes])
    print_table(["data set", "split", *counts, "before", "after"], rows)
    for result in results:
        for failure in result["failures"]:
            say(f"{result['dataset']} {result['split']}: {failure['outcome']}: {failure['path']}: {failure['why']}")
        unnamed = result["partial"] + result["failed"] - len(result["failures"])
        if unnamed:
            say(f"{result['dataset']} {result['split']}: and {unnamed} more, all in {result['made']}")


def _size(count: float) -> str:
    """Bytes with a unit, such as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


# --- checks of the output folder ---


def _check_out(catalog: Catalog, out: Path) -> None:
    """Raises UserError if the folder overlaps with originals or has their catalog."""
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
            file = out / "catalog.yaml"
            raise UserError(f"--out: {file} is the catalog of {other[0]}, which is not prepared; name another folder")


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
        pass  # only the machine that reads the data needs the package
    return url


def _check_origin(catalog: Catalog, specs: Sequence[DatasetSpec], out: Path) -> None:
    """Raises UserError if the folder has a data set of the same name that was prepared from another catalog."""
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
def _in_one_line(out: Path, jobs: Sequence[SplitJob] = ()) -> Iterator[None]:
    """Turn an OSError into a UserError of one line, with the path, the reason and the progress of `jobs`."""
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


# --- running the jobs ---


def _jobs(catalog: Catalog, spec: DatasetSpec, layout: OutputLayout) -> Iterator[SplitJob]:
    for split in spec.splits:
        path = catalog.manifest_path(spec.name, split)
        if split == "dev" and "dev" not in spec.annotations and not path.is_file():
            continue  # too few rows for a dev split
        manifest = catalog.manifest(spec.name, split)
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
    failures = [done for done in job.outcomes() if done.outcome in ("partial", "failed")]
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
        "failures": [{"path": done.origin, "outcome": done.outcome, "why": done.why} for done in failures[:_NAMED]],
    }


def _write_catalog(out: Path, specs: Sequence[DatasetSpec], jobs: Sequence[SplitJob]) -> None:
    """Add the data sets to the catalog of the folder. Data sets of earlier runs stay in it."""
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
    """Remove the splits of these data sets that only an earlier run had."""
    ours = {(job.name, job.split) for job in jobs}
    for spec in specs:
        for split in SPLITS:
            if (spec.name, split) not in ours:
                drop(out, spec.name, split)


def _carry_exclusions(catalog: Catalog, out: Path) -> None:
    """Copy the list of exclusions of the originals. Prepared manifests have the same rows, so it is valid for them."""
    path = exclusions_path(catalog)
    if not path.is_file():
        return
    exclusions, metadata = read_exclusions(path)
    digests: dict[str, str] = metadata["manifests"]
    stale = [file for file in digests if _digest(path.parent / file) != digests[file]]
    if stale:
        say(
            f"{path} is older than {stale[0]} and was not taken over;"
            f" run `cover overlap {catalog.path}`, then this command again"
        )
        return
    names = _current(out, digests)
    current = [item for item in exclusions if item.dataset in names]
    carried = {file: _digest(out / "manifests" / file) or "" for file in digests if _set_of(file) in names}
    write_exclusions(exclusions_path(load_catalog(out / "catalog.yaml")), current, carried, metadata["kinds"])


def _current(out: Path, digests: Mapping[str, str]) -> set[str]:
    """The data sets that were prepared from the manifests in `digests`.

    In other data sets a row number may be that of another row, so their exclusions are not copied.
    """
    files = {file: out / "manifests" / file for file in digests}
    changed = [file for file, place in files.items() if _original(place) != digests[file]]
    old = set(map(_set_of, changed))
    for name in sorted(old & {_set_of(file) for file, place in files.items() if place.is_file()}):
        say(f"the exclusions of {name} were not taken over: it was indexed anew since it was prepared; prepare it too")
    return {_set_of(file) for file in digests} - old


def _original(manifest: Path) -> str | None:
    """The digest of the manifest of the originals, None if a split is not prepared."""
    return open_manifest(manifest).original if manifest.is_file() else None


def _set_of(file: str) -> str:
    """The data set in the file name of a manifest."""
    return file.rpartition("-")[0]


def _digest(manifest: Path) -> str | None:
    return open_manifest(manifest).digest() if manifest.is_file() else None


def prepared_entry(spec: DatasetSpec, manifests: dict[str, str]) -> dict[str, Any]:
    """The catalog entry of a prepared data set. Sampling, views, flips and crops are those of the originals."""
    sampling = spec.sampling
    default_interval = sampling.kind != "dense" or sampling == Sampling("dense")
    # repr, because str() of a Sampling rounds the interval
    kind = sampling.kind if default_interval else f"dense@{sampling.interval!r}"
    return {
        "format": PREPARED,
        "root": ".",
        "media": spec.media,
        "annotations": manifests,
        "flip": spec.flip,
        "sampling": kind,
        "views": str(spec.views),
        "crop_scale": list(spec.crop_scale),
        **({"licence": spec.licence} if spec.licence else {}),
    }
