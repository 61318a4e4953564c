"""What the servers under test sign sessions with."""

from __future__ import annotations

SECRET = "a-secret-of-the-tests-with-more-than-32-bytes"
