from pxsched.cli import entry

entry()
