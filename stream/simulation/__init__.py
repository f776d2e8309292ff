"""Deterministic simulation: the production worker in a world of failures that a seed decides.

Nothing of the product is replaced: the worker, its engine and its control run over a simulated broker, store,
clock and event loop. An auditor that shares no code with the engine then works out what should have come of
the same readings, and compares.
"""
