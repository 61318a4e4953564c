"""Who may call, and under which plan."""
