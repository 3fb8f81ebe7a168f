"""The version of pabzip, in one place for setup.cfg, the command line and file metadata."""

__version__ = "0.1.0"
