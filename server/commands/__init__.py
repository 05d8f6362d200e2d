"""The commands of `draftline`, a module each; what is slow to import, functions import when they need it."""
