"""Small programs that keep their data with `shelve`, as people write them."""
