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
    parser.add_argument("--style", default="think_tags", choices=styles)
    parser.add_argument("--json-key", default="text", help="the column of the text")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine")
    parser.add_argument("--shard", default="", metavar="I/N", help="only every N-th block, for job arrays")
    parser.add_argument("--ray", action="store_true", help="actors of a Ray cluster instead of processes")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="any setting, a preset or a .toml file"
    )
    options = parser.parse_intermixed_args()
    return tpt(
        [
            "pack",
            *options.settings,
            f"data.inputs={json.dumps(options.input)}",
            f"data.tokenizer={json.dumps(options.tokenizer)}",
            f"data.output={json.dumps(options.output_prefix)}",
            f"data.style={options.style}",
            f"corpus.text_key={json.dumps(options.json_key)}",
            f"data.workers={options.workers}",
            f"data.shard={json.dumps(options.shard)}",
            f"data.executor={'ray' if options.ray else 'local'}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
