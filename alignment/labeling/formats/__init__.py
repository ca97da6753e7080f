"""The files that hold ratings, a file for each family; `table` lists them."""
