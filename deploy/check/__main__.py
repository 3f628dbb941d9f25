"""`python3 deploy/check`: see outside.py."""

import sys

from outside import main

sys.exit(main())
