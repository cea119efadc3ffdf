"""What is written and read: edits, artifacts, checkpoints, packed files; every one opened and replaced through `storage`."""
