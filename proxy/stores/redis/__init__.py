"""Counters of many processes, in Redis or Valkey."""
