"""Is this machine ready? What is installed, what it can do, and a small trial of it."""
