"""Pictures on their way to fal, without what they say about the person who took them."""
