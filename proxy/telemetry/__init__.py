"""What a process says about itself: log lines and metrics."""
