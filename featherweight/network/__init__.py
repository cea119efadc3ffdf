"""A network of which nothing is known: how it is called, copied and stored, where it is, what mode it is in, what it draws."""
