"""Faster paths beside the plain torch model, each with its slow twin in the tests."""
