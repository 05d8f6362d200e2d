# Generated from _async/__init__.py by tools/generate_sync_client.py: change that file, not this one.
"""The synchronous client."""
