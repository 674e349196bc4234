"""lesioncam: scores skin-lesion images in bulk with a two-stage, CAM-guided classifier.

Importing this package does nothing: no torch, no Ray, no directories, no logging set-up.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lesioncam")
except PackageNotFoundError:  # run from a working directory shipped by `ray job submit`
    __version__ = "0.1.0+source"
