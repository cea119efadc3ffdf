"""Training as a task says: for how long and how fast (`schedule`), the loop (`fit`), a teacher beside it (`distillation`)."""
