"""`tpt train`: from the config to the last checkpoint, going on where an earlier run of it stopped."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tpt_megatron.artifact import write_text
from tpt_megatron.config.load import dump
from tpt_megatron.config.schema import Config
from tpt_megatron.data.dataset import Samples
from tpt_megatron.data.loader import prefetch
from tpt_megatron.errors import ConfigError, StoppedError
from tpt_megatron.mcore import checkpoint
from tpt_megatron.mcore.batch import Batch
from tpt_megatron.mcore.checkpoint import TrainState
from tpt_megatron.mcore.engine import Engine, StepResult, build_engine, train_step
from tpt_megatron.mcore.groups import close_grid, init_grid
from tpt_megatron.mcore.optimizer import set_learning_rate
from tpt_megatron.train.feed import micro_batches
from tpt_megatron.train.log import MetricsLog
from tpt_megatron.train.order import describe_order, keep_order
from tpt_megatron.train.schedule import learning_rate


@dataclass(frozen=True)
class TrainSummary:
    """What the last line of the verb says. `loss` is the mean over the last tenth of this call's steps."""

    steps: int
    tokens: int
    loss: float
    seconds: float
    tokens_per_second: float
    checkpoint: Path
    rank: int


def checkpoint_folder(config: Config) -> Path:
    return Path(config.checkpoint.folder or Path(config.train.run_dir) / "checkpoints")


def train(config: Config) -> TrainSummary:
    """Train to the token budget and leave a checkpoint; every rank of the world calls it."""
    if not config.train.run_dir:
        raise ConfigError("train.run_dir: no folder for the run", fix="train.run_dir=runs/NAME")
    grid = init_grid(config)
    try:
        samples = Samples(config.data, config.train.seed, config.model.vocab_size)
        engine = build_engine(config, grid)
        return _fit(engine, samples)
    finally:
        close_grid()


def _fit(engine: Engine, samples: Samples) -> TrainSummary:
    config, folder = engine.config, checkpoint_folder(engine.config)
    state = _resume(engine, folder)
    facts = describe_order(samples, config)
    keep_order(Path(config.train.run_dir) / "data.json", facts, state.step, engine.grid.rank)
    begin, start, losses = state, time.monotonic(), [float("nan")]
    feed = prefetch(_batches(engine, samples, state), config.data.prefetch_batches)
    with _log(engine, state) as log, _progress(engine, state) as progress, closing(feed):
        task = progress.add_task("train", total=config.train_steps, completed=state.step)
        while state.step < config.train_steps:
            rate = learning_rate(state.step, config.train_steps, config.optimizer)
            set_learning_rate(engine.optimizer, rate)
            before = time.monotonic()
            result = train_step(engine, islice(feed, engine.num_micro_batches))
            state = _advance(state, config)
            _check_finite(result, state)
            losses.append(result.tally.loss)
            line = {
                **asdict(state), **asdict(result.tally), "loss": result.tally.loss, "learning_rate": rate,
                "gradient_norm": result.gradient_norm, "seconds": time.monotonic() - before,
            }  # fmt: skip
            if log:
                log.write(line)
            progress.update(task, advance=1, description=f"train  loss {result.tally.loss:.4f}")
            if config.checkpoint.every_steps and state.step % config.checkpoint.every_steps == 0:
                checkpoint.save(engine, folder, state)
    seconds = time.monotonic() - start
    done = state.consumed_tokens - begin.consumed_tokens
    tail = losses[-max(len(losses) // 10, 1) :]
    return TrainSummary(
        steps=state.step,
        tokens=state.consumed_tokens,
        loss=sum(tail) / len(tail),
        seconds=seconds,
        tokens_per_second=done / seconds,
        checkpoint=checkpoint.save(engine, folder, state),
        rank=engine.grid.rank,
    )


def _resume(engine: Engine, folder: Path) -> TrainState:
    def warn(message: str) -> None:
        if engine.grid.rank == 0:
            print(f"warning: {message}", flush=True)

    step = checkpoint.newest_sound(folder, warn)
    return TrainState() if step is None else checkpoint.load(engine, step)


def _batches(engine: Engine, samples: Samples, state: TrainState) -> Iterator[Batch]:
    """This rank's micro-batches of all the steps that are left."""
    train, grid = engine.config.train, engine.grid
    for step in range(engine.config.train_steps - state.step):
        first = state.consumed_samples + step * train.global_batch_size
        yield from micro_batches(
            samples, first, train.global_batch_size, train.micro_batch_size, grid.data_rank, grid.data_size
        )


def _advance(state: TrainState, config: Config) -> TrainState:
    return replace(
        state,
        step=state.step + 1,
        consumed_samples=state.consumed_samples + config.train.global_batch_size,
        consumed_tokens=state.consumed_tokens + config.tokens_per_step,
    )


def _check_finite(result: StepResult, state: TrainState) -> None:
    finite = (
        result.updated and abs(result.tally.loss) != float("inf") and result.tally.loss == result.tally.loss
    )
    if not finite:
        raise StoppedError(
            f"step {state.step}: loss or gradient is not finite",
            got=f"loss {result.tally.loss}, gradient norm {result.gradient_norm}",
            fix="lower optimizer.learning_rate or look at the data; the last checkpoint is untouched",
        )


@contextmanager
def _log(engine: Engine, state: TrainState) -> Iterator[MetricsLog | None]:
    """Rank 0 writes the resolved config and the metrics."""
    if engine.grid.rank != 0:
        yield None
        return
    run_dir = Path(engine.config.train.run_dir)
    write_text(run_dir / "config.json", dump(engine.config))
    log = MetricsLog(run_dir / "metrics.jsonl", state.step)
    try:
        yield log
    finally:
        log.close()


def _progress(engine: Engine, state: TrainState) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    return Progress(*columns, transient=True, console=console, disable=engine.grid.rank != 0)
