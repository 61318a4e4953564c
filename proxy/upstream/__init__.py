"""fal's side: what is sent there, and what comes back."""
