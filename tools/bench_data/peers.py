"""One peer, on one JSONL file: `python peers.py NAME INPUT OUTPUT TOKENIZER_FOLDER`.

Runs in the peer's own Python, which need not have tpt_megatron: imports nothing of ours. `gigatoken` and
`fastokens` are the bare encoders: they print {"megabytes", "cpu_s", "tokens"} of encoding alone, the texts
in memory, in batches as large as ours, on one thread.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH_CHARACTERS = 4 * 10**6


def batches(path: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    with path.open("rb") as file:
        for line in file:
            batch.append(json.loads(line)["text"])
            size += len(batch[-1])
            if size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def plain_definition(tokenizer: Path) -> str:
    """tokenizer.json without its special tokens, so that a text's `<|endoftext|>` stays text."""
    body = json.loads((tokenizer / "tokenizer.json").read_text())
    return json.dumps({**body, "added_tokens": [], "post_processor": None})


def open_gigatoken(definition: str) -> Callable[[list[str]], Any]:
    from gigatoken import Tokenizer

    tokenizer = Tokenizer.from_json(definition)
    return lambda texts: tokenizer.encode_batch(texts, parallel=False).layout.content.data


def open_fastokens(definition: str) -> Callable[[list[str]], Any]:
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_json_str(definition)
    return lambda texts: memoryview(tokenizer.encode_batch_flat(texts, False)[0]).cast("B").cast("I")


def bare(name: str, source: Path, _output: Path, tokenizer: Path) -> None:
    """CPU-seconds of `encode` alone, over all threads; its caches start empty."""
    encode = {"gigatoken": open_gigatoken, "fastokens": open_fastokens}[name](plain_definition(tokenizer))
    encode(["open what is opened at first use"])
    cpu_s, size, tokens = 0.0, 0, 0
    for batch in batches(source):
        started = time.process_time()
        ids = encode(batch)
        cpu_s += time.process_time() - started
        tokens += len(ids)
        size += sum(len(text.encode()) for text in batch)
    print(json.dumps({"megabytes": size / 1e6, "cpu_s": cpu_s, "tokens": tokens}))


def datatrove(_name: str, source: Path, output: Path, tokenizer: Path) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

    reader = JsonlReader(
        str(source.parent), text_key="text", id_key="id", glob_pattern=source.name, compression=None
    )
    writer = MegatronDocumentTokenizer(
        output_folder=str(output / "tokens"),
        tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
        eos_token="<|endoftext|>",
        batch_size=1000,
    )
    executor = LocalPipelineExecutor(
        [reader, writer], tasks=1, workers=1, logging_dir=str(output / "log"), skip_completed=False
    )
    executor.run()


def datasets(_name: str, source: Path, output: Path, tokenizer: Path) -> None:
    """`datasets`' map over batches of 1,000, to Arrow, as its documentation tokenizes."""
    import datasets as library
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    encoder.no_padding()
    library.disable_progress_bars()
    rows = library.load_dataset(
        "json", data_files=str(source), split="train", cache_dir=str(output / "cache")
    )

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[*encoded.ids, 0] for encoded in encoder.encode_batch_fast(batch["text"])]}

    features = library.Features({"input_ids": library.Sequence(library.Value("uint16"))})
    tokens = rows.map(
        encode, batched=True, batch_size=1000, remove_columns=rows.column_names, features=features
    )
    tokens.save_to_disk(str(output / "dataset"))


PEERS = {"gigatoken": bare, "fastokens": bare, "datatrove": datatrove, "datasets": datasets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=sorted(PEERS))
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("tokenizer", type=Path)
    options = parser.parse_args()
    PEERS[options.name](options.name, options.input, options.output, options.tokenizer)


if __name__ == "__main__":
    main()
