"""Measurements: never asserted in a test, always quoted with the command that takes them."""
