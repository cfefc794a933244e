"""What `dml prepare` is made of: downloads, archives that are unpacked, images that are packed into shards."""
