"""Many runs that are compared: what they are, what is missing of them, and what they show."""
