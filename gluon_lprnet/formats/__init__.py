"""Files of networks from any program: read without risk, and brought into the form that the package works with."""
