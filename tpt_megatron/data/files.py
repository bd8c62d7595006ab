"""The files of a corpus: named by paths, globs, folders and URLs; opened as stored or unpacked."""

import glob
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import pyarrow as pa

from tpt_megatron.errors import InputError

Format = Literal["jsonl", "gzip", "zstd", "parquet"]

SUFFIXES: Mapping[str, Format] = {
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".jsonl.gz", ".json.gz", ".ndjson.gz"), "gzip"),
    **dict.fromkeys((".jsonl.zst", ".jsonl.zstd", ".json.zst", ".json.zstd", ".ndjson.zst"), "zstd"),
    ".parquet": "parquet",
}
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


def input_files(paths: Sequence[str], key: str) -> list[InputFile]:
    """The files that `paths` names, in that order; within a folder or glob by name, hidden ones left out.

    Raises InputError, naming the config key `key`, where a path names nothing, a file is named twice or
    the package for its URL is missing.
    """
    if not paths:
        raise InputError(f"{key} is empty", expected="files, globs, folders or URLs", fix=f"set {key}")
    files = [file for name in paths for file in _expand(name, key)]
    seen: set[str] = set()
    for file in files:
        identity = file.url if is_url(file.url) else os.path.realpath(file.url)
        if identity in seen:
            raise InputError(f"{key} names {file.url} twice", fix="leave one of the overlapping paths out")
        seen.add(identity)
    return files


def _expand(name: str, key: str) -> list[InputFile]:
    local = name.removeprefix("file://")
    listed, whole = _remote(name, key) if is_url(local) else _local(local)
    if not listed:
        problem = "matches no file" if glob.has_magic(name) else "does not exist"
        raise InputError(f"{key}: {name!r} {problem}", expected="files, globs, folders or URLs")
    known = ", ".join(SUFFIXES)
    for url in whole:
        if format_of(url) is None:
            raise InputError(f"{key}: {url} has an unknown suffix", expected=known)
    files = [
        file
        for file in listed
        if file.url in whole or (format_of(file.url) and not _name(file.url).startswith("."))
    ]
    if not files:
        raise InputError(f"{key}: nothing to read in the folder {name}", expected=known)
    return files


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _local(name: str) -> tuple[list[InputFile], set[str]]:
    """Files, and which of them were named themselves and not by their folder."""
    names = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True))
    paths: list[str] = []
    whole: set[str] = set()
    for found in map(os.path.abspath, names):
        if os.path.isdir(found):
            inside = [os.path.join(folder, file) for folder, _, files in os.walk(found) for file in files]
            paths += sorted(inside, key=lambda path: path.split(os.sep))
        else:
            paths.append(found)
            whole.add(found)
    return [_local_file(path) for path in paths if os.path.exists(path)], whole


def _local_file(path: str) -> InputFile:
    status = os.stat(path)
    return InputFile(path, status.st_size, str(status.st_mtime_ns))


def _remote(url: str, key: str) -> tuple[list[InputFile], set[str]]:
    with readable(url):
        system, path = _filesystem(url, key)
        if urlsplit(url).scheme in ("http", "https"):  # neither folders nor globs; "?" begins the query
            return [_remote_file(url, system.info(path))], {url}
        if glob.has_magic(path):
            details = system.glob(path, detail=True)
        elif system.isdir(path):
            details = system.find(path, detail=True)
            return [_remote_file(system.unstrip_protocol(p), details[p]) for p in sorted(details)], set()
        else:
            details = {path: system.info(path)} if system.exists(path) else {}
    kept = {p: info for p, info in sorted(details.items()) if info.get("type") != "directory"}
    files = [_remote_file(system.unstrip_protocol(p), info) for p, info in kept.items()]
    return files, {file.url for file in files}


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
