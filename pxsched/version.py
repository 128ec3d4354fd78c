"""The version, for `--version`, the packages and what is published."""

VERSION = "0.1.0"
