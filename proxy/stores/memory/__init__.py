"""Counters of one process, in memory."""

from proxy.stores.memory.counters import MemoryCounters as MemoryCounters
