"""The page in a real headless Chromium, against the whole stack."""
