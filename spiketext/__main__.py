"""`python -m spiketext` is the command line."""

import sys

from spiketext.cli import main

sys.exit(main())
