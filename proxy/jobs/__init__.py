"""A job from its submit to its settlement: who owns it, what state it is in, what it cost, when it is removed."""
