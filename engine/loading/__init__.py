"""From a checkpoint and a configuration to a running engine."""
