"""The network: backbone and heads."""
