"""fal-proxy: the server between a browser or phone app and fal, which keeps the FAL_KEY."""

__version__ = "0.1.0"
