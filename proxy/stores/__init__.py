"""Our persistence. Files on their way to fal are `uploads`, never here."""
