"""Tests of the pieces of HTTP that every surface shares."""
