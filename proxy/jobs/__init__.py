"""Queued requests at fal: who owns them, and what is known of their state."""
