"""Who may call, and within which limits: tenants, plans, keys, overrides, and the directory of them all."""
