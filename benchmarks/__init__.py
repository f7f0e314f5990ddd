"""What is claimed about speed, each claim one runnable file."""
