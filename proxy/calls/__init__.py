"""The way of a call: what a caller asks for, whether it may, what fal answers, and what it cost."""
