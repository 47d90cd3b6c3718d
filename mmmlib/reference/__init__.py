"""The training that assembles the primitives."""
