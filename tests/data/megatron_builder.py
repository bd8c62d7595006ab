"""megatron.core's own .bin and .idx of a JSONL file: `python megatron_builder.py INPUT OUTPUT TOKENIZER`.

The reference of packing in style "none": the Hugging Face tokenizer, which knows no special token while it
reads text, each document ended by the id of `<|endoftext|>`, written by IndexedDatasetBuilder.
"""

import json
import sys
from pathlib import Path

ROWS_PER_CALL = 1000


def main(source: str, output: str, tokenizer: str) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from tokenizers import Tokenizer

    body = json.loads((Path(tokenizer) / "tokenizer.json").read_text())
    (end,) = (token["id"] for token in body["added_tokens"] if token["content"] == "<|endoftext|>")
    plain = Tokenizer.from_str(json.dumps({**body, "added_tokens": [], "post_processor": None}))
    vocab_size = max(*body["model"]["vocab"].values(), *(token["id"] for token in body["added_tokens"])) + 1
    builder = IndexedDatasetBuilder(f"{output}.bin", dtype=DType.optimal_dtype(vocab_size))
    lines = Path(source).read_bytes().splitlines()
    for start in range(0, len(lines), ROWS_PER_CALL):
        texts = [json.loads(line)["text"] for line in lines[start : start + ROWS_PER_CALL]]
        for encoded in plain.encode_batch_fast(texts, add_special_tokens=False):
            ids = [*encoded.ids, end]
            builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{output}.idx")


if __name__ == "__main__":
    main(*sys.argv[1:])
