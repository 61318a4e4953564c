"""What bounds a call: rates, concurrency, quotas, inputs and open streams."""
