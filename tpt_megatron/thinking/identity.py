"""`job.json`: which job a folder holds. A second run goes on with the same job or is refused."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpt_megatron.artifact import temporary_beside, write_text
from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.errors import ConfigError, DamagedError, InputError
from tpt_megatron.thinking.chunk import link_exclusive
from tpt_megatron.thinking.prompt import Prompt
from tpt_megatron.thinking.request import sampling
from tpt_megatron.tokenizer import TextTokenizer


def describe(config: ThinkingConfig, prompt: Prompt, tokenizer: TextTokenizer) -> dict[str, Any]:
    """All that makes two runs one job, as far as it is known before the generator is opened."""
    return {
        "thinking.model": config.model,
        "thinking.revision": config.revision,
        "thinking.prompt": prompt.name,
        "prompt_sha256": prompt.hash,
        "tokenizer_sha256": tokenizer.fingerprint,
        "thinking.documents_per_chunk": config.documents_per_chunk,
        **sampling(config),
    }


def check_same(path: Path, settings: Mapping[str, Any]) -> None:
    """Compare `settings` with the job at `path`, if there is one.

    Raises ConfigError naming the first key that differs, DamagedError for a file that is not ours.
    """
    try:
        recorded = json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise DamagedError(f"{path}: not readable", fix="give another thinking.output") from error
    for key, value in settings.items():
        if recorded.get(key) != value:
            raise ConfigError(
                f"{key}: the job in {path.parent} was begun with another one",
                got=repr(value),
                expected=repr(recorded.get(key)),
                fix="give that one, or another thinking.output",
            )


def create(path: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder a job's, or find that it is the same job's already. The first writer wins.

    Raises InputError for a folder with trajectories but no job, ConfigError as check_same does.
    """
    if not path.exists():
        if stray := next(path.parent.glob("part-*.parquet"), None):
            raise InputError(f"{stray}: trajectories of no job", fix="give another thinking.output")
        temporary = temporary_beside(path)
        write_text(temporary, json.dumps(settings, indent=1) + "\n")
        link_exclusive(temporary, path)
        temporary.unlink()
    check_same(path, settings)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the job at `path` for this process alone; the kernel lets go of it when the process ends.

    Raises InputError where another process holds it.
    """
    with open(path, "r+b") as file:  # NFS grants an exclusive lock only to a file open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{path.parent}: another process is working on this job",
                fix="wait for it, or give another thinking.output",
            ) from None
        yield
