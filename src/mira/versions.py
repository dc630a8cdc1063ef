"""Versions worth recording beside a result: those that decide its bits."""

import platform
from importlib.metadata import version

_PACKAGES = ("mira-ssl", "torch", "timm", "torchvision", "numpy", "pillow", "opencv-python-headless")


def versions() -> dict[str, str]:
    """Of Python and of the libraries, by name."""
    return {"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}}
