"""What the program keeps: a protocol for each noun, in SQL and, for counters, in memory or Redis. No bytes of files."""
