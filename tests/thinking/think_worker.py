"""`think_worker.py MODEL OUTPUT DOCUMENTS`: a job in a process of its own, so that it can be killed."""

import sys

import torch

from tpt_megatron.config.schema import ThinkingConfig
from tpt_megatron.records import Document
from tpt_megatron.thinking.job import think


def settings(model: str, output: str) -> ThinkingConfig:
    return ThinkingConfig(
        model=model, output=output, max_new_tokens=150, batch_size=4, documents_per_chunk=6, top_p=0.95
    )


def corpus(count: int) -> list[Document]:
    return [Document(f"d{i}", f"Document {i}: " + "some words " * (i % 7 + 1)) for i in range(count)]


def main() -> None:
    torch.set_num_threads(1)
    model, output, count = sys.argv[1:]
    think(corpus(int(count)), settings(model, output), lambda done, tokens: print(done, flush=True))


if __name__ == "__main__":
    main()
