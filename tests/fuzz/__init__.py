"""Random input for the compiled core under sanitizers, see tests/README.md."""
