"""A corpus reader of one's own: a paragraph of a text file is a document. corpus.reader=paragraphs:read"""

from collections.abc import Iterator
from pathlib import Path

from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.records import Document, text_id


def read(config: CorpusConfig) -> Iterator[Document]:
    for path in config.paths:
        for paragraph in Path(path).read_text().split("\n\n"):
            if text := paragraph.strip():
                yield Document(id=text_id(text), text=text, source=config.source or Path(path).name)
