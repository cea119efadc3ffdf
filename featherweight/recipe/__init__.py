"""What to do, as data (`schema`), and what that means for one network (`plan`)."""
