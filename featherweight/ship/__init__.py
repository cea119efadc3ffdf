"""Other runtimes: files that are run and compared before they are kept (`export`), and the time that networks take (`bench`)."""
