"""Remote datasets copied once, verified as they stream, and again when what is here is not whole."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tpt_megatron.artifact import verify_manifest
from tpt_megatron.config.schema import DataConfig
from tpt_megatron.data.cache import local_prefix
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.indexed import IndexedDataset
from tpt_megatron.data.writer import IndexedWriter
from tpt_megatron.errors import ConfigError, DamagedError, InputError

URL = "memory://bucket/data/x"
Upload = Callable[..., None]


@pytest.fixture
def upload(tmp_path: Path) -> Iterator[Upload]:
    """upload(ids): packs a dataset of blocks of 64 bytes and puts it at URL."""

    def put(ids: list[int]) -> None:
        about = {"tokenizer": {"name": "t", "fingerprint": "f", "vocab_size": 600}}
        with IndexedWriter(tmp_path / "remote" / "x", 600, block_bytes=64) as writer:
            writer.add(ids, 0, 0, 0)
            writer.finish(about)
        for path in (tmp_path / "remote").iterdir():
            with fsspec.open(f"memory://bucket/data/{path.name}", "wb") as file:
                file.write(path.read_bytes())

    yield put
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of remote files that were opened."""
    names: list[str] = []
    real = fsspec.open

    def spy(url: str, *more: str) -> object:
        names.append(url.rpartition("/")[2])
        return real(url, *more)

    monkeypatch.setattr(fsspec, "open", spy)
    return names


def test_a_remote_dataset_is_copied_once(tmp_path: Path, upload: Upload, opened: list[str]) -> None:
    upload(list(range(100)))
    prefix = local_prefix(URL, str(tmp_path / "cache"))
    assert IndexedDataset(prefix).sequence(0).tolist() == list(range(100))
    verify_manifest(prefix.with_name("x.manifest.json"))
    assert {path.name for path in prefix.parent.iterdir()} == {
        "x.bin", "x.idx", "x.parts", "x.manifest.json", ".lock",
    }  # fmt: skip
    opened.clear()
    assert local_prefix(URL, str(tmp_path / "cache")) == prefix
    assert opened == ["x.manifest.json"]


def test_samples_of_a_remote_blend(tmp_path: Path, upload: Upload) -> None:
    upload(list(range(100)))
    data = DataConfig(blend=((URL, 1.0),), sequence_length=16, cache_dir=str(tmp_path / "cache"))
    assert sorted(Samples(data, 0, 600)[i].tokens[0] for i in range(6)) == [0, 16, 32, 48, 64, 80]
    with pytest.raises(ConfigError, match=r"memory://bucket/data/x is remote.*data\.cache_dir=FOLDER"):
        Samples(data.model_copy(update={"cache_dir": ""}), 0, 600)


def test_a_local_prefix_is_left_alone() -> None:
    assert local_prefix("some/where/x", "") == Path("some/where/x")


@pytest.mark.parametrize("suffix", ["bin", "idx", "parts", "manifest.json"])
@pytest.mark.parametrize("harm", ["gone", "short", "flipped"])
def test_what_is_not_whole_is_fetched_again(
    tmp_path: Path, upload: Upload, opened: list[str], suffix: str, harm: str
) -> None:
    upload(list(range(100)))
    prefix = local_prefix(URL, str(tmp_path / "cache"))
    path, manifest = prefix.with_name(f"x.{suffix}"), prefix.with_name("x.manifest.json")
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "short":
        path.write_bytes(whole[:-1])
    else:  # seen at once where the manifest was not yet in place, by `tpt verify` where it was
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        manifest.unlink()
    opened.clear()
    assert local_prefix(URL, str(tmp_path / "cache")) == prefix
    assert path.read_bytes() == whole
    verify_manifest(manifest)
    assert opened == ["x.manifest.json"] + [path.name] * (path != manifest)


@pytest.mark.parametrize("suffix", ["bin", "manifest.json"])
@pytest.mark.parametrize("harm", ["gone", "short", "long", "flipped"])
def test_damage_at_the_far_end_is_named_and_nothing_stays(
    tmp_path: Path, upload: Upload, suffix: str, harm: str
) -> None:
    upload(list(range(100)))
    store = fsspec.filesystem("memory")
    name = f"/bucket/data/x.{suffix}"
    raw = store.cat(name)
    changed = {"short": raw[:-1], "long": raw + b"x", "flipped": raw[:70] + bytes([raw[70] ^ 1]) + raw[71:]}
    store.rm(name) if harm == "gone" else store.pipe(name, changed[harm])
    with pytest.raises((DamagedError, InputError), match=rf"memory://bucket/data/x\.{suffix}") as caught:
        local_prefix(URL, str(tmp_path / "cache"))
    assert isinstance(caught.value, InputError) == (harm == "gone")
    here = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert f"x.{suffix}" not in here
    assert "x.manifest.json" not in here
    assert not [name for name in here if name.startswith(".tmp-")]


def test_a_new_version_stands_beside_the_old_one(tmp_path: Path, upload: Upload) -> None:
    upload(list(range(100)))
    old = local_prefix(URL, str(tmp_path / "cache"))
    upload(list(range(1, 101)))
    new = local_prefix(URL, str(tmp_path / "cache"))
    assert [IndexedDataset(prefix).sequence(0)[0] for prefix in (old, new)] == [0, 1]


def test_several_at_once_copy_once(tmp_path: Path, upload: Upload, opened: list[str]) -> None:
    upload(list(range(100)))
    opened.clear()
    results: list[Path] = []
    copies = [
        threading.Thread(target=lambda: results.append(local_prefix(URL, str(tmp_path / "cache"))))
        for _ in range(8)
    ]
    for thread in copies:
        thread.start()
    for thread in copies:
        thread.join()
    assert len(set(results)) == 1
    assert len(results) == 8
    assert opened.count("x.bin") == 1
    verify_manifest(results[0].with_name("x.manifest.json"))


def test_a_scheme_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read nowhere://x"):
        local_prefix("nowhere://x", str(tmp_path))
