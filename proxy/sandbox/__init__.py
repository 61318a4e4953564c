"""The stand-in for fal: all four of its hosts on one port, without a key, a network or a bill."""
