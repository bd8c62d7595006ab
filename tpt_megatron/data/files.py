"""The files of a corpus: named by paths, globs, folders and URLs; opened as stored or unpacked."""

import glob
import gzip
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from tpt_megatron.data.layout import CORE, EXTRAS
from tpt_megatron.errors import InputError

Format = Literal["jsonl", "gzip", "zstd", "parquet"]

SUFFIXES: Mapping[str, Format] = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".jsonl.gz", ".json.gz", ".ndjson.gz"), "gzip"),
    **dict.fromkeys((".jsonl.zst", ".jsonl.zstd", ".json.zst", ".json.zstd", ".ndjson.zst"), "zstd"),
    ".parquet": "parquet",
}
# Rows that no reader takes: in a folder such a file is refused, where any other is passed over.
UNREADABLE = re.compile(
    r"\.(jsonl|ndjson|json|parquet)\.(bz2|xz|lzma|lz4|br|zip|7z|snappy|gz|zst|zstd)$", re.IGNORECASE
)
PACKAGES = {  # what to install for a URL's scheme
    **{"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"},
    **{"http": "aiohttp", "https": "aiohttp", "abfs": "adlfs", "az": "adlfs"},
}
# Errors of the backends that are no OSError; looked up when one is caught, so that none is imported for it.
BACKEND_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
)


class ByteStream(Protocol):
    """What is read: files, decompressors and fsspec's files have it in common."""

    def read(self, size: int, /) -> bytes | None: ...

    def seek(self, offset: int, /) -> int: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was when the inputs were listed."""

    url: str  # an absolute path, or a URL
    size_bytes: int  # -1: its server does not say
    version: str  # changes when the content does: modification time, etag or checksum


def format_of(url: str) -> Format | None:
    """What the file's name says it holds; None for a name that no reader takes."""
    name = urlsplit(url).path if is_url(url) else url
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def is_url(name: str) -> bool:
    return "://" in name


def input_files(paths: Sequence[str], key: str, exclude: Path | None = None) -> list[InputFile]:
    """The files that `paths` names, in that order; within a folder or glob by name, hidden ones left out.

    So are the files of the dataset `exclude` and of the work on it, which may lie among its inputs. Links
    are followed. Raises InputError, naming the config key `key`, where a path names nothing, a file is named
    twice, a file of rows or a folder cannot be read, or the package for its URL is missing.
    """
    if not paths:
        raise InputError(f"{key} is empty", expected="files, globs, folders or URLs", fix=f"set {key}")
    files = [file for name in paths for file in _expand(name, key, exclude)]
    seen: set[str] = set()
    for file in files:
        identity = file.url if is_url(file.url) else os.path.realpath(file.url)
        if identity in seen:
            raise InputError(f"{key} names {file.url} twice", fix="leave one of the overlapping paths out")
        seen.add(identity)
    return files


def _expand(name: str, key: str, exclude: Path | None) -> list[InputFile]:
    local = name.removeprefix("file://")
    listed, whole = _remote(name, key) if is_url(local) else _local(local, exclude)
    if not listed:
        problem = "matches no file" if glob.has_magic(name) else "does not exist"
        raise InputError(f"{key}: {name!r} {problem}", expected="files, globs, folders or URLs")
    known = ", ".join(SUFFIXES)
    for url in whole:
        if format_of(url) is None:
            raise InputError(f"{key}: {url} has an unknown suffix", expected=known)
    files = {url: file for url, file in listed.items() if url in whole or _has_rows(url, key)}
    if not files:
        raise InputError(f"{key}: nothing to read in the folder {name}", expected=known)
    return [file or _local_file(url, key) for url, file in files.items()]


def _has_rows(url: str, key: str) -> bool:
    """Whether the file of a folder is to be read; InputError where it holds rows that no reader takes."""
    if url.rpartition("/")[2].startswith("."):
        return False
    if format_of(url) is None and (UNREADABLE.search(url) or format_of(url.lower())):
        raise InputError(
            f"{key}: {url} has a suffix that no reader takes", expected=f"one of {', '.join(SUFFIXES)}",
            fix="unpack, rename or convert it, or take it out of the folder",
        )  # fmt: skip
    return format_of(url) is not None


def is_output(path: str, exclude: Path | None) -> bool:
    """Whether the local `path` is a file of the dataset `exclude` or lies in the folder of the work on it."""
    if exclude is None:
        return False
    prefix = os.path.join(os.path.realpath(exclude.parent), exclude.name)
    place = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return place in {f"{prefix}.{suffix}" for suffix in (*CORE, *EXTRAS, "work")} or place.startswith(
        f"{prefix}.work{os.sep}"
    )


def _local(name: str, exclude: Path | None) -> tuple[dict[str, InputFile | None], set[str]]:
    """Paths, and which of them were named themselves and not by their folder."""
    itself = os.path.lexists(name)
    paths: list[str] = []
    whole: set[str] = set()
    for found in map(os.path.abspath, [name] if itself else sorted(glob.glob(name, recursive=True))):
        if os.path.isdir(found):
            paths += (path for path in _inside(found) if not is_output(path, exclude))
        elif itself or not is_output(found, exclude):
            paths.append(found)
            whole.add(found)
    return dict.fromkeys(paths), whole


def _inside(folder: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """What lies below the folder and is none itself, by name; not again where a link leads back `above`."""
    try:
        status = os.stat(folder)
        names = sorted(os.listdir(folder))
    except OSError as error:
        fix = "make it readable, or name the files beside it by a glob"
        raise InputError(f"the folder {folder} cannot be listed: {error.strerror}", fix=fix) from error
    identity = (status.st_dev, status.st_ino)
    for path in (os.path.join(folder, name) for name in names if identity not in above):
        if os.path.isdir(path):
            yield from _inside(path, (*above, identity))
        else:
            yield path


def _local_file(path: str, key: str) -> InputFile:
    try:
        status = os.stat(path)
    except OSError as error:
        problem = "is a link to nothing" if os.path.islink(path) else f"cannot be read: {error.strerror}"
        raise InputError(f"{key}: {path} {problem}", fix="mend or remove it") from error
    return InputFile(path, status.st_size, str(status.st_mtime_ns))


def _remote(url: str, key: str) -> tuple[dict[str, InputFile | None], set[str]]:
    with readable(url):
        system, path = _filesystem(url, key)
        if urlsplit(url).scheme in ("http", "https"):  # neither folders nor globs; "?" begins the query
            return {url: _remote_file(url, system.info(path))}, {url}
        if glob.has_magic(path):
            details = system.glob(path, detail=True)
        elif system.isdir(path):
            details = system.find(path, detail=True)
            inside = {system.unstrip_protocol(p): details[p] for p in sorted(details)}
            return {name: _remote_file(name, info) for name, info in inside.items()}, set()
        else:
            details = {path: system.info(path)} if system.exists(path) else {}
    kept = {p: info for p, info in sorted(details.items()) if info.get("type") != "directory"}
    names = {system.unstrip_protocol(p): info for p, info in kept.items()}
    return {name: _remote_file(name, info) for name, info in names.items()}, set(names)


def _remote_file(url: str, info: Mapping[str, Any]) -> InputFile:
    names = ("ETag", "etag", "md5Hash", "blob_id", "generation", "LastModified", "last_modified", "mtime")
    version = next((info[name] for name in (*names, "created") if info.get(name)), "")
    size = info.get("size")
    return InputFile(url, -1 if size is None else int(size), str(version))


def _filesystem(url: str, key: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(scheme, str(error))
        raise InputError(
            f"{key}: {url} needs a package that is missing", fix=f"pip install {package}"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{key}: {url}: {error}", expected=f"a path or one of {', '.join(PACKAGES)}"
        ) from error
    return system, path


def open_binary(url: str) -> ByteStream:
    """The file's bytes as stored, unbuffered where it is local; seekable."""
    if not is_url(url):
        return open(url, "rb", buffering=0)
    system, path = _filesystem(url, "corpus.paths")
    stream: ByteStream = system.open(path, "rb")
    return stream


@contextmanager
def open_unpacked(url: str) -> Iterator[ByteStream]:
    """The file's bytes, decompressed on the way where its name says so, in memory that does not grow.

    A stream cut short raises EOFError or OSError instead of ending, which `readable` tells; an empty file
    with a compressed one's name raises InputError.
    """
    stored = open_binary(url)
    stream = stored
    try:
        if unpack := _UNPACKERS.get(format_of(url) or ""):
            if not stored.read(1):
                raise InputError(f"{url} is an empty file, not even an empty {format_of(url)} stream")
            stored.seek(0)
            stream = unpack(stored)
        yield stream
    finally:
        stream.close()
        stored.close()


def _gunzip(stored: ByteStream) -> ByteStream:
    # Python's, because Arrow's refuses the zero bytes that tape blocks leave behind the last member.
    return gzip.GzipFile(fileobj=stored, mode="rb")  # type: ignore[call-overload, no-any-return]


def _unzstd(stored: ByteStream) -> ByteStream:
    # Arrow's, because the zstandard package ends a truncated stream without a word. Windows over 128 MiB are
    # refused, so a frame's header cannot ask for more memory.
    stream: ByteStream = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd")
    return stream


_UNPACKERS: Mapping[str, Callable[[ByteStream], ByteStream]] = {"gzip": _gunzip, "zstd": _unzstd}


@contextmanager
def readable(url: str) -> Iterator[None]:
    """What goes wrong in here while `url` is read becomes an InputError that names it."""
    try:
        yield
    except read_errors() as error:
        raise InputError(f"{url} cannot be read to its end: {error or type(error).__name__}") from error


def read_errors() -> tuple[type[BaseException], ...]:
    """What reading a file can raise, in the backends that are loaded."""
    backends = (getattr(sys.modules.get(module), name, None) for module, name in BACKEND_ERRORS)
    return (OSError, EOFError, zlib.error, pa.ArrowException, *(error for error in backends if error))
