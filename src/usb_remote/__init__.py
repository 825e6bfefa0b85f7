"""USB devices on your network, as if they were plugged in here."""

__all__ = ["__version__"]

__version__ = "3.0.0"
