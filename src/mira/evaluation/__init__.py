"""Protocols over frozen features, one file each, their floors, and features and weights for use elsewhere.

Nothing is imported here: `mira evaluate --help` reads the list in `protocols.py` alone, and answers at once.
"""
