"""A layer as two thin ones: what a view means (`layers`), at which rank (`ranks`), put in its place (`factor`)."""
