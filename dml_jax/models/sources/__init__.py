"""How published files name the arrays of our backbones, a module per family."""
