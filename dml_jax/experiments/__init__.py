"""Small experiments of papers, a command each: data, training and figure in one file."""
