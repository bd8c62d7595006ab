"""Documents one by one, in the order of the input: what `tpt think` reads.

A row that is no document becomes a BadRow and its neighbours live; a file that cannot be read to its
end stops the reading, because nobody can say what the rest of it held.
"""

from collections.abc import Iterator

from tpt_megatron.config.schema import CorpusConfig
from tpt_megatron.data.blocks import READERS, Block, Span, check_reader, corpus_chunks
from tpt_megatron.data.chunks import Skip
from tpt_megatron.data.files import input_files
from tpt_megatron.records import BadRow, Document
from tpt_megatron.slots import resolve

Row = Document | BadRow


def open_corpus(config: CorpusConfig) -> Iterator[Row]:
    """The rows of the corpus, through the reader that the slot `corpus.reader` names."""
    check_reader(config)
    reader = resolve(config.reader, READERS, "corpus.reader")
    return iter(reader(config))


def read_corpus(config: CorpusConfig) -> Iterator[Row]:
    """The rows of JSONL and Parquet files, in the order of `corpus.paths`; within a folder or glob by name.

    Stops after `corpus.max_documents` documents; bad rows and those that `corpus.where` leaves out are not
    counted. Raises InputError, before the first row, for a path that names nothing.
    """
    spans = tuple(Span(file.url) for file in input_files(config.paths, "corpus.paths"))
    return _rows(Block(0, "stream", spans), config)


def _rows(block: Block, config: CorpusConfig) -> Iterator[Row]:
    left = config.max_documents
    for chunk in corpus_chunks(block, config, "none", metadata=True, skip=Skip(0)):
        for row in chunk.outcomes():
            if isinstance(row, BadRow):
                yield row
            elif row is not None:
                yield row.document
                left = None if left is None else left - 1
                if left == 0:
                    return
