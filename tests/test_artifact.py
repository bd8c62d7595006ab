"""Atomic files and manifests: whole or not at all, and every changed byte is found."""

import os
from pathlib import Path

import pytest

from tpt_megatron.artifact import (
    Digester,
    Manifest,
    atomic_file,
    digest_file,
    manifest_of_files,
    manifest_of_tree,
    publish_folder,
    read_manifest,
    verify_manifest,
    verify_tree,
    write_manifest,
)
from tpt_megatron.errors import DamagedError, InputError


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A folder of two artifacts, one with a nested folder, and a manifest over the whole."""
    root = tmp_path / "root"
    (root / "data/deep").mkdir(parents=True)
    (root / "data/a.bin").write_bytes(bytes(range(256)) * 3)
    (root / "data/deep/b.bin").write_bytes(b"")
    write_manifest(root / "data/manifest.json", manifest_of_files(root / "data", "test", {"n": 2}, 100))
    (root / "loose.txt").write_text("loose")
    write_manifest(root / "manifest.json", manifest_of_tree(root, "run", {}))
    return root


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def torn_write() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        torn_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
def test_digests_do_not_depend_on_the_pieces(tmp_path, piece):
    data = os.urandom(1000)
    (tmp_path / "x").write_bytes(data)
    digester = Digester(100)
    for begin in range(0, len(data), piece):
        digester.update(data[begin : begin + piece])
    assert digester.digest() == digest_file(tmp_path / "x", 100)
    assert len(digest_file(tmp_path / "x", 100).blocks) == 10


def test_every_byte_of_every_file_counts(artifact):
    assert len(verify_tree(artifact)) == 2
    for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        for position in range(0, len(raw), 13):
            changed = bytearray(raw)
            changed[position] ^= 1
            path.write_bytes(changed)
            with pytest.raises(DamagedError):
                verify_tree(artifact)
        path.write_bytes(raw)
    verify_tree(artifact)


def test_the_damaged_block_is_named(artifact):
    path = artifact / "data/a.bin"
    raw = bytearray(path.read_bytes())
    raw[250] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"a\.bin: block 2 of 8"):
        verify_manifest(artifact / "data/manifest.json")


@pytest.mark.parametrize("name", ["data/a.bin", "data/manifest.json", "loose.txt"])
def test_a_missing_file_is_found(artifact, name):
    (artifact / name).unlink()
    with pytest.raises(DamagedError, match="missing"):
        verify_tree(artifact)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x"])
def test_a_wrong_size_is_named(artifact, change):
    path = artifact / "data/a.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedError, match=r"wrong size, got 76[79] bytes, expected 768 bytes"):
        verify_manifest(artifact / "data/manifest.json")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0b", ""])
def test_names_outside_the_folder_are_refused_before_opening(tmp_path, name):
    (tmp_path / "x").write_bytes(b"x")
    manifest = Manifest("test", {name: digest_file(tmp_path / "x")}, {})
    write_manifest(tmp_path / "manifest.json", manifest)
    with pytest.raises(DamagedError, match="outside its folder"):
        read_manifest(tmp_path / "manifest.json")


def test_a_symbolic_link_is_no_file_of_an_artifact(artifact):
    path = artifact / "data/a.bin"
    path.rename(artifact.parent / "elsewhere")
    path.symlink_to(artifact.parent / "elsewhere")
    with pytest.raises(DamagedError, match="missing"):
        verify_manifest(artifact / "data/manifest.json")


def test_no_manifest_and_the_wrong_kind_are_input_errors(artifact, tmp_path):
    with pytest.raises(InputError, match="no manifest"):
        verify_tree(tmp_path / "nothing")
    with pytest.raises(InputError, match="wrong kind of artifact, got test, expected dataset"):
        read_manifest(artifact / "data/manifest.json", "dataset")


def test_a_folder_is_published_whole_and_never_over_another(tmp_path):
    for name in ("temporary", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / "temporary", tmp_path / "final")
    publish_folder(tmp_path / "temporary", tmp_path / "new")
    assert (tmp_path / "new/file").read_text() == "temporary"
