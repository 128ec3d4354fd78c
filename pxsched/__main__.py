import sys

from pxsched.cli import main

sys.exit(main())
