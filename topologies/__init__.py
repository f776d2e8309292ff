"""Topologies that ship with the product: declarations only, imported by nobody."""
