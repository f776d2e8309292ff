"""Anomaly detectors: arrays in, arrays out; no input or output, no clock, nothing of the stream."""
