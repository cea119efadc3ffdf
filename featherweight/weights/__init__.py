"""What may be asked of weights: sets through views, imposed by drivers, stored and trained as codes. Read `sets` first."""
