"""Measurements: speed and error figures, never run by the tests."""
