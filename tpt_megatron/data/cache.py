"""A local cache of remote datasets: a prefix that is a URL is copied once, verified while it streams.

Each version of a dataset has a folder of its own, named by its manifest's checksum: CACHE_DIR/NAME-CHECKSUM.
A file gets its name when its blocks agree with the manifest, the manifest when all files are there. Every
opening compares sizes and fetches again what is missing or short; `tpt verify` compares checksums.
"""

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tpt_megatron.artifact import (
    MANIFEST_SUFFIX,
    Digester,
    FileDigest,
    Manifest,
    atomic_file,
    digest_file,
    read_manifest,
)
from tpt_megatron.data.files import read_errors
from tpt_megatron.errors import ConfigError, DamagedError, InputError

COPY_BYTES = 2**22


def local_prefix(prefix: str, cache_dir: str) -> Path:
    """Where the dataset `prefix` is on this machine; a URL (s3://..., memory://...) is copied there first.

    Several processes may call it at once: one copies, the others wait. Raises ConfigError for a URL without
    data.cache_dir, InputError for one that cannot be read, DamagedError where its bytes are not those of its
    manifest.
    """
    if "://" not in prefix:
        return Path(prefix)
    if not cache_dir:
        raise ConfigError(
            f"data.blend: {prefix} is remote, and data.cache_dir says nowhere to copy it to",
            fix="data.cache_dir=FOLDER, on a disk that takes the whole dataset",
        )
    parent, _, name = prefix.rpartition("/")
    raw = b"".join(_read(f"{prefix}.{MANIFEST_SUFFIX}"))
    folder = Path(cache_dir) / f"{name}-{hashlib.sha256(raw).hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data.cache_dir: cannot write {folder}: {error.strerror}") from error
    with _locked(folder / ".lock"):
        manifest = _parse(raw, folder, prefix)
        final = folder / f"{name}.{MANIFEST_SUFFIX}"
        whole = final.is_file() and final.read_bytes() == raw
        for file, digest in manifest.files.items():
            if not _is_sound(folder / file, digest, manifest, compare_bytes=not whole):
                _copy(f"{parent}/{file}", folder / file, digest, manifest)
        if not whole:
            with atomic_file(final) as out:
                out.write(raw)
    return folder / name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes with its holder, however that ends."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _parse(raw: bytes, folder: Path, prefix: str) -> Manifest:
    path = folder / f".remote.{MANIFEST_SUFFIX}"
    with atomic_file(path) as file:
        file.write(raw)
    try:
        return read_manifest(path, kind="dataset")
    except (DamagedError, InputError) as error:
        raise type(error)(f"{prefix}.{MANIFEST_SUFFIX}: {error}") from error
    finally:
        path.unlink()


def _is_sound(path: Path, digest: FileDigest, manifest: Manifest, *, compare_bytes: bool) -> bool:
    if not path.is_file() or path.stat().st_size != digest.size:
        return False
    return not compare_bytes or digest_file(path, manifest.block_bytes) == digest


def _copy(url: str, path: Path, expected: FileDigest, manifest: Manifest) -> None:
    digester = Digester(manifest.block_bytes)
    with atomic_file(path) as out:
        for data in _read(url):
            digester.update(data)
            out.write(data)
        actual = digester.digest()
        if actual.size != expected.size:
            raise DamagedError(f"{url}: wrong size", got=f"{actual.size} bytes", expected=expected.size)
        for block, (got, want) in enumerate(zip(actual.blocks, expected.blocks, strict=True)):
            if got != want:
                raise DamagedError(
                    f"{url}: block {block} of {len(expected.blocks)} does not match its checksum",
                    got=got[:16], expected=want[:16], fix="run again; if it stays, upload the dataset again",
                )  # fmt: skip


def _read(url: str) -> Iterator[bytes]:
    """The bytes at `url`, some MiB at a time."""
    import fsspec

    def attempt[T](action: Callable[[], T]) -> T:
        try:
            return action()
        except ImportError as error:
            raise InputError(f"data.blend: cannot read {url}: {error}") from error
        except FileNotFoundError:
            raise InputError(f"data.blend: {url} does not exist", fix="is the dataset whole there?") from None
        except ValueError as error:  # fsspec's word for a protocol that it does not know
            raise InputError(f"data.blend: cannot read {url}: {error}") from error
        except read_errors() as error:
            raise InputError(f"data.blend: cannot read {url}: {error}") from error

    def opened() -> IO[bytes]:
        file: Any = fsspec.open(url, "rb").open()
        return file  # type: ignore[no-any-return]

    with attempt(opened) as file:
        while data := attempt(lambda: file.read(COPY_BYTES)):
            yield data
