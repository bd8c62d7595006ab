"""`tpt pack` under the flags that users of Megatron-LM's preprocess_data.py expect."""

import argparse
import json
import sys

from tpt_megatron.cli import main as tpt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="folders of trajectories")
    parser.add_argument("--tokenizer", required=True, help="a folder with tokenizer.json, or a hub name")
    parser.add_argument("--output-prefix", required=True)
    parser.add_argument("--style", default="think_tags", choices=["think_tags", "plain", "prefix", "none"])
    options = parser.parse_args()
    return tpt(
        [
            "pack",
            f"data.inputs={json.dumps(options.input)}",
            f"data.tokenizer={json.dumps(options.tokenizer)}",
            f"data.output={json.dumps(options.output_prefix)}",
            f"data.style={options.style}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
