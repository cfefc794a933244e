"""What `dml inspect` is made of: hashes of pictures, copies and near copies, and the page that shows them."""
