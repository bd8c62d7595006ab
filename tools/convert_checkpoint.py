"""`tpt convert` as a script: convert_checkpoint.py to-hf STEP_DIR HF_DIR [--dtype] [--tokenizer]."""

import sys

from tpt_megatron.cli import main as tpt

if __name__ == "__main__":
    sys.exit(tpt(["convert", *sys.argv[1:]]))
