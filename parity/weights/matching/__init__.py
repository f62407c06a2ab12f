"""Which tensor is which, by value: sketches of rows and columns, a search over them, exact numbers at the end."""
