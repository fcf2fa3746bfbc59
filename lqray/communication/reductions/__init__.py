"""One file a reduction: its name in the YAML is its file's."""
