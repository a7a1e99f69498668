"""The replicated log: PySyncObj and everything that makes it safe; the only importer of pysyncobj."""
