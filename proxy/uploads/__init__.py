"""Files on their way to fal, by every way that a client knows. fal's signed URLs stay here."""
