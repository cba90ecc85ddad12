"""`python -m ckptfs` is `ckptfs`."""

import sys

from ckptfs.cli.main import main

sys.exit(main())
