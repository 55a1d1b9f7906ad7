import palimpsest  # noqa: F401 - by its short name, too, this room is the package's
