"""uvicorn as this program runs it: a limited head, deadlines, draining, several workers."""
