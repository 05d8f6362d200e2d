"""Frozen records that cross the borders of the engine, and its errors."""
