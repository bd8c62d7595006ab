"""What is written to disk: atomic files, folders and their manifests.

A file appears whole or not at all: temporary name, fsync, rename, fsync of the folder.
An artifact is a set of files and a manifest, written last, that holds a checksum of every block of
every file and one of itself; so a changed byte anywhere, the manifest included, is found.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tpt_megatron.errors import DamagedError, InputError

MANIFEST_FORMAT = 1
BLOCK_BYTES = 64 * 2**20
MANIFEST_SUFFIX = "manifest.json"  # `manifest.json` in a folder, `NAME.manifest.json` beside NAME's files
TEMPORARY = ".tmp-"


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename is not, before this)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that no reader takes for `path`; unique to this process."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


@contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file to write that becomes `path` when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a finished folder its name; `final` must not exist. Its files are synced first."""
    for path in sorted(temporary.rglob("*")):
        if path.is_dir():
            fsync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_folder(temporary)
    os.rename(temporary, final)
    fsync_folder(final.parent)


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and the SHA-256 of each block; an empty file has no block."""

    size: int
    blocks: tuple[str, ...]


class Digester:
    """SHA-256 per block of a stream, fed in pieces of any size while the stream is written."""

    def __init__(self, block_bytes: int | None = BLOCK_BYTES) -> None:
        self.block_bytes, self.size = block_bytes, 0
        self._blocks: list[str] = []
        self._hash, self._filled = hashlib.sha256(), 0

    def update(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.size += len(view)
        while len(view):
            room = len(view) if self.block_bytes is None else self.block_bytes - self._filled
            piece, view = view[:room], view[room:]
            self._hash.update(piece)
            self._filled += len(piece)
            if self._filled == self.block_bytes:
                self._close_block()

    def _close_block(self) -> None:
        self._blocks.append(self._hash.hexdigest())
        self._hash, self._filled = hashlib.sha256(), 0

    def digest(self) -> FileDigest:
        """The digest of all that was fed; the digester is spent."""
        if self._filled:
            self._close_block()
        return FileDigest(self.size, tuple(self._blocks))


def digest_file(path: Path, block_bytes: int | None = BLOCK_BYTES) -> FileDigest:
    digester = Digester(block_bytes)
    with open(path, "rb") as file:
        while data := file.read(2**22):
            digester.update(data)
    return digester.digest()


@dataclass(frozen=True)
class Manifest:
    """What an artifact is made of. `files` are names relative to the manifest's folder."""

    kind: str
    files: Mapping[str, FileDigest]
    about: Mapping[str, Any]  # the artifact's own facts: counts, settings, lineage
    block_bytes: int | None = BLOCK_BYTES  # None: one checksum for the whole file

    def encode(self) -> bytes:
        body = {
            "about": dict(self.about),
            "block_bytes": self.block_bytes,
            "files": {n: {"size": d.size, "sha256": list(d.blocks)} for n, d in sorted(self.files.items())},
            "format": MANIFEST_FORMAT,
            "kind": self.kind,
        }
        checksum = hashlib.sha256(_dump(body)).hexdigest()
        return _dump({**body, "manifest_sha256": checksum})


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def manifest_of_files(
    folder: Path, kind: str, about: Mapping[str, Any], block_bytes: int | None = None
) -> Manifest:
    """The manifest of all files now in `folder` (temporary files and manifests of its own name excepted)."""
    files = {
        path.relative_to(folder).as_posix(): digest_file(path, block_bytes)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(TEMPORARY) and path != folder / MANIFEST_SUFFIX
    }
    return Manifest(kind, files, about, block_bytes)


def manifest_of_tree(folder: Path, kind: str, about: Mapping[str, Any]) -> Manifest:
    """The manifest over a folder of artifacts: their manifests, and every file that none of them covers."""
    below = [path for path in find_manifests(folder) if path != folder / MANIFEST_SUFFIX]
    covered = {path.parent / name for path in below for name in read_manifest(path).files}
    whole = manifest_of_files(folder, kind, about)
    files = {name: digest for name, digest in whole.files.items() if folder / name not in covered}
    return Manifest(kind, files, about, None)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest` atomically; call it after every file it names is in place."""
    with atomic_file(path) as file:
        file.write(manifest.encode())


def read_manifest(path: Path, kind: str | None = None) -> Manifest:
    """The manifest at `path`, its own checksum verified.

    Raises InputError where there is none or its kind is not `kind`; DamagedError where it is torn or changed.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(
            f"{path}: no manifest, so this is not a finished artifact",
            fix="run the stage that writes it again",
        ) from None
    try:
        body = json.loads(raw)
        files = {n: FileDigest(f["size"], tuple(f["sha256"])) for n, f in body["files"].items()}
        manifest = Manifest(body["kind"], files, body["about"], body["block_bytes"])
        if body["format"] != MANIFEST_FORMAT:
            raise InputError(f"{path}: manifest format", got=body["format"], expected=MANIFEST_FORMAT)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: not a readable manifest ({type(error).__name__})") from error
    if manifest.encode() != raw:
        raise DamagedError(f"{path}: the manifest does not match its own checksum")
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name:
            raise DamagedError(f"{path}: names a file outside its folder", got=repr(name))
    if kind is not None and manifest.kind != kind:
        raise InputError(f"{path}: wrong kind of artifact", got=manifest.kind, expected=kind)
    return manifest


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Compare the size of every file with the manifest at `path`: what each opening does, cheap."""
    for name, digest in manifest.files.items():
        file = path.parent / name
        if not file.is_file() or file.is_symlink():
            raise DamagedError(f"{file}: missing, but {path.name} names it")
        if (size := file.stat().st_size) != digest.size:
            raise DamagedError(f"{file}: wrong size", got=f"{size} bytes", expected=f"{digest.size} bytes")


def verify_manifest(path: Path, progress: Callable[[int], None] = lambda size: None) -> Manifest:
    """Check every byte of the artifact whose manifest is `path`; `progress` gets the bytes read.

    Raises DamagedError naming the file and the block.
    """
    manifest = read_manifest(path)
    check_sizes(path, manifest)
    for name, expected in manifest.files.items():
        actual = digest_file(path.parent / name, manifest.block_bytes)
        for block, (got, want) in enumerate(zip(actual.blocks, expected.blocks, strict=True)):
            if got != want:
                where = f"block {block} of {len(expected.blocks)}"
                raise DamagedError(
                    f"{path.parent / name}: {where} does not match its checksum",
                    got=got[:16], expected=want[:16],
                    fix="write the artifact again, or restore it from a copy",
                )  # fmt: skip
        progress(expected.size)
    return manifest


def find_manifests(path: Path) -> list[Path]:
    """The manifests of a manifest's path, a folder (searched to the bottom) or a dataset's prefix."""
    if path.is_file():
        return [path] if path.name.endswith(MANIFEST_SUFFIX) else []
    if path.is_dir():
        return sorted(p for p in path.rglob(f"*{MANIFEST_SUFFIX}") if not p.name.startswith(TEMPORARY))
    beside = path.with_name(f"{path.name}.{MANIFEST_SUFFIX}")
    return [beside] if beside.is_file() else []


def verify_tree(path: Path, progress: Callable[[int], None] = lambda size: None) -> list[Manifest]:
    """Verify every artifact at or below `path`; InputError where there is none."""
    manifests = find_manifests(path)
    if not manifests:
        raise InputError(
            f"{path}: no manifest here, so nothing that was finished",
            fix="give a run, a dataset's prefix, a checkpoint step or an exported model",
        )
    return [verify_manifest(manifest, progress) for manifest in manifests]
