"""What every other folder builds on: errors, configuration sections, the registry of components, seeds, YAML."""
