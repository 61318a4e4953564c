"""Alerts to the operator and to tenants: what is watched, how each is raised once, how it reaches its receivers."""
