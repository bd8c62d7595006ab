"""`tpt pack` under flags that users of Megatron-LM know; everything else follows as KEY=VALUE."""

import argparse
import json
import sys

from tpt_megatron.cli import main as tpt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="folders of trajectories, or corpora")
    parser.add_argument("--tokenizer", required=True, help="a folder, a hub name or a SentencePiece .model")
    parser.add_argument("--output-prefix", required=True)
    styles = ["think_tags", "plain", "prefix", "none", "chat"]
    parser.add_argument("--style", choices=styles)
    parser.add_argument("--json-key", help="the column of the text")
    parser.add_argument("--workers", type=int, help="processes on this machine")
    parser.add_argument("--shard", metavar="I/N", help="only every N-th block, for job arrays")
    parser.add_argument("--ray", action="store_const", const="ray", help="actors of a Ray cluster instead")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="any setting, a preset or a .toml file"
    )
    options = parser.parse_intermixed_args()
    flags = {
        "data.inputs": options.input,
        "data.tokenizer": options.tokenizer,
        "data.output": options.output_prefix,
        "data.style": options.style,
        "corpus.text_key": options.json_key,
        "data.workers": options.workers,
        "data.shard": options.shard,
        "data.executor": options.ray,
    }
    # Only what was given: a flag that was not must not undo a preset or a KEY=VALUE.
    given = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None
    ]
    return tpt(["pack", *options.settings, *given])


if __name__ == "__main__":
    sys.exit(main())
