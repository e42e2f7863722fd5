"""`cover doctor`: whether this machine is ready for work."""
