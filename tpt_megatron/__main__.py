"""`python -m tpt_megatron`, which is what torchrun starts."""

import sys

from tpt_megatron.cli import main

if __name__ == "__main__":
    sys.exit(main())
