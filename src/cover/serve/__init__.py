"""Prediction over HTTP: uploads have limits, are decoded in separate processes, and share forward passes."""
