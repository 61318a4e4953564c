"""Counts that need no durability: in memory for one process, in Redis for many."""

from proxy.stores.counters.memory import MemoryCounters as MemoryCounters
