"""Data sets on disk: catalogs, formats, manifests, preparation and overlap."""
