"""Where the bytes are: one contract (`base`) and the storages that keep it."""
