"""Studies that come with the library, by name: `dml study --study=NAME --workdir=DIR`."""
